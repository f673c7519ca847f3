// Light, dark, or as the system says. Not a module: it runs before anything is shown.
"use strict";
(() => {
  const KEY = "pie-theme";
  const NAMES = ["auto", "light", "dark"];
  const read = () => {
    try {
      const name = localStorage.getItem(KEY);
      return NAMES.includes(name) ? name : "auto";
    } catch {
      return "auto"; // storage is off
    }
  };
  const show = (name) => {
    if (name === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
  };
  let current = read();
  show(current);
  window.pieTheme = {
    get name() {
      return current;
    },
    next() {
      current = NAMES[(NAMES.indexOf(current) + 1) % NAMES.length];
      show(current);
      try {
        localStorage.setItem(KEY, current);
      } catch {
        // it lasts as long as the page then
      }
      dispatchEvent(new Event("pie-theme"));
    },
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
    dispatchEvent(new Event("pie-theme")),
  );
})();
