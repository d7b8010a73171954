document.addEventListener("DOMContentLoaded", () => {
  for (const part of document.querySelectorAll(".arithmatex")) {
    const text = part.textContent.trim(), display = text.startsWith("\\[");
    katex.render(text.slice(2, -2), part, {displayMode: display, throwOnError: false});
  }
});
