"""The standard library that programs may import: imported here, it is in the component."""

# ruff: noqa: F401, E401, I001

import abc, argparse, array, ast, base64, bisect, calendar, cmath, codecs, collections
import collections.abc, colorsys, configparser, contextlib, contextvars, copy, csv, dataclasses
import datetime, decimal, difflib, email.message, enum, errno, fnmatch, fractions, functools, gc
import getopt, graphlib, gzip, hashlib, heapq, hmac, html, html.parser, importlib, importlib.abc
import importlib.machinery, importlib.util, inspect, io, itertools, json, keyword, linecache
import locale, logging, math, mimetypes, numbers, operator, optparse, os, os.path, pathlib, pickle, pkgutil, platform
import posixpath, pprint, queue, random, re, reprlib, sched, secrets, shlex, shutil, signal, statistics
import socket, string, struct, subprocess, sys, tempfile, textwrap, threading, time, timeit, token
import tokenize, tomllib, traceback, types, typing, unicodedata, unittest, urllib.error, urllib.parse
import encodings.idna, encodings.utf_16, encodings.utf_32, encodings.cp1252, encodings.iso8859_15
import uuid, warnings, weakref, xml.etree.ElementTree, zipfile, zlib, zoneinfo
