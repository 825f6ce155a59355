// What test_browser.py asks of a page, in the browser: one object of plain values.
() => {
  const all = (selector) => [...document.querySelectorAll(selector)].filter((e) => e.getClientRects().length);
  const colour = (text) => { const n = text.match(/[\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const ground = colour(getComputedStyle(e).backgroundColor);
      if (ground[3] > 0.5) return ground;
    }
    return [255, 255, 255, 1];
  };
  const contrast = (e) => {
    const pair = [colour(getComputedStyle(e).color), behind(e)].map(luminance).sort((a, b) => b - a);
    return (pair[0] + 0.05) / (pair[1] + 0.05);
  };
  const texts = all('body *').filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
  const figures = all('figure');
  const links = all('.contents a').map((a) => decodeURIComponent(a.hash.slice(1)));
  return {
    alts: [...document.images].map((i) => i.alt.trim()),
    overflow: document.documentElement.scrollWidth - innerWidth,
    texts: texts.length,
    faint: texts.filter((e) => contrast(e) < 4.5).map((e) => `${e.tagName}.${e.className}: ${e.textContent.trim()}`),
    page: luminance(behind(document.body)),
    cards: [...document.images].map((i) => luminance(behind(i))),
    breaks: figures.map((f) => getComputedStyle(f).breakInside),
    heights: figures.map((f) => f.getBoundingClientRect().height),
    rights: all('main table, main pre, main img').map((e) => e.getBoundingClientRect().right),
    contents: all('.contents').map((e) => e.className),
    links: links.length,
    lost: links.filter((name) => !document.getElementById(name)),
  };
}
