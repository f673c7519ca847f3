"""Chats as text: the templates of models, rendered in a process of their own."""
