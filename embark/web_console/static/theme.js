// Before the first paint: the theme that was chosen, or the system's.
"use strict";
(() => {
  const kept = (() => { try { return localStorage; } catch { return null; } })(); // a browser may forbid it
  const stored = kept?.getItem("theme");
  const theme = stored === "light" || stored === "dark" ? stored : "system";
  if (theme !== "system") document.documentElement.dataset.theme = theme;
  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll(".needs-script").forEach((each) => { each.hidden = false; });
    const choice = document.getElementById("theme");
    choice.value = theme;
    choice.addEventListener("change", () => {
      if (choice.value === "system") {
        delete document.documentElement.dataset.theme;
        kept?.removeItem("theme");
      } else {
        document.documentElement.dataset.theme = choice.value;
        kept?.setItem("theme", choice.value);
      }
      document.dispatchEvent(new Event("theme"));
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("theme")));
  });
})();
