// What a browser makes of each of `documents` ({ name, html, width, scheme }), as JSON in the document that this runs in.
"use strict";

// Of a colour as computed styles have it.
const parts = (colour) => colour.match(/[\d.]+/g).map(Number);

// WCAG 2.2, relative luminance and contrast ratio.
const luminance = (colour) => {
  const [red, green, blue] = parts(colour).slice(0, 3).map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
const contrast = (one, other) => {
  const [darker, lighter] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (lighter + 0.05) / (darker + 0.05);
};

const measure = (frame, { name, width, scheme }) => {
  const view = frame.contentWindow;
  const page = frame.contentDocument;
  const all = (selector, of = page) => [...of.querySelectorAll(selector)];
  const text = (element) => element.textContent.trim().replace(/\s+/g, " ");
  const style = (element) => view.getComputedStyle(element);
  const background = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = style(at).backgroundColor;
      if ((parts(colour)[3] ?? 1) === 1) return colour;
    }
    throw new Error("nothing is behind it");
  };
  const visible = (selector) => all(selector).filter((element) => element.checkVisibility()).length;
  const closed = { details: all("details").length, open: all("details[open]").length, visible: visible("dl") };
  for (const summary of all("summary")) summary.click();
  const opened = { open: all("details[open]").length, visible: visible("dl") };

  const words = all("body *").filter(
    (element) => element.checkVisibility() && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()),
  );
  const ratios = words.map((element) => [contrast(style(element).color, background(element)), text(element)]);
  const [ratio, of] = ratios.reduce((worst, one) => (one[0] < worst[0] ? one : worst));
  const sticksOut = (element) => element.getBoundingClientRect().right > page.documentElement.clientWidth + 1;
  const cell = (td) => ({ words: text(td), class: td.className });
  const colour = (kind) => all(`td.${kind}`).map((td) => style(td).backgroundColor)[0] ?? null;
  return {
    name, width, scheme,
    title: page.title,
    headings: all("h1, h2").map(text),
    dark: view.matchMedia("(prefers-color-scheme: dark)").matches,
    paper: style(page.body).backgroundColor,
    counts: all(".counts li").map(text),
    findings: all("#findings li").map((li) => [li.className, text(li)]),
    columns: all("#map thead th").map(text),
    rows: all("#map tbody tr").map((tr) => ({ head: text(tr.querySelector("summary")), cells: all("td", tr).map(cell) })),
    details: all("#map dl").map((dl) => all("dd", dl).map((dd) => dd.textContent)),
    loopback: all("#loopback li summary").map(text),
    colours: ["anyone", "some", "nobody"].map(colour),
    contrast: { ratio, of, asked: ratios.length },
    resources: view.performance.getEntriesByType("resource").map((entry) => entry.name),
    loaders: all("img, script, link, iframe, object, embed, video, audio, form, base, [src], [href]").map((element) => element.tagName),
    handlers: all("*").flatMap((element) => element.getAttributeNames()).filter((attribute) => attribute.startsWith("on")),
    images: all("img").map((img) => img.naturalWidth),
    overflow: {
      page: page.documentElement.scrollWidth - page.documentElement.clientWidth,
      map: all(".scroll").map((scroll) => scroll.scrollWidth - scroll.clientWidth),
      elements: all("body *").filter((element) => !element.parentElement.closest(".scroll") && sticksOut(element)).map((element) => element.tagName),
    },
    closed, opened,
  };
};

const show = async (wanted) => {
  const frame = document.createElement("iframe");
  // The page in it prefers the scheme that the frame has.
  frame.style.cssText = `width: ${wanted.width}px; height: 900px; border: 0; color-scheme: ${wanted.scheme}`;
  frame.srcdoc = wanted.html;
  const loaded = new Promise((done) => { frame.onload = done; });
  document.body.append(frame);
  await loaded;
  const result = measure(frame, wanted);
  frame.remove();
  return result;
};

(async () => {
  const results = [];
  let error = null;
  try {
    for (const wanted of documents) results.push(await show(wanted));
  } catch (caught) {
    error = `${caught}\n${caught.stack}`;
  }
  const json = JSON.stringify({ results, error });
  const out = document.createElement("pre");
  out.textContent = json.replace(/[<>&\u00a0]/g, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);
  document.body.replaceChildren(out);
})();
