// A graph of the last hour: lines over time, with the value under the pointer or the arrow keys.
const W = 600, H = 120;

export class Plot {
  constructor(title, unit, short, el, svgEl) {
    Object.assign(this, { title, unit, short, el, svgEl, at: -1, series: [], times: [] });
    this.svg = svgEl('svg', { viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: 'none', role: 'img', tabindex: '0' });
    this.legend = el('span', { class: 'legend' });
    this.y = el('div', { class: 'ylabels', 'aria-hidden': 'true' }, el('span'), el('span'), el('span', {}, '0'));
    this.x = el('div', { class: 'xlabels', 'aria-hidden': 'true' }, el('span'), el('span'), el('span', {}, 'now'));
    this.figure = el('figure', {}, el('figcaption', {}, el('strong', {}, title), this.legend), el('div', { class: 'plot' }, this.y, this.svg), this.x);
    this.svg.addEventListener('pointermove', (e) => this.look(e.offsetX / this.svg.clientWidth));
    this.svg.addEventListener('pointerleave', () => { this.at = -1; this.say(); });
    this.svg.addEventListener('blur', () => { this.at = -1; this.say(); });
    this.svg.addEventListener('keydown', (e) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
      if (!step || !this.times.length) return;
      e.preventDefault();
      this.at = Math.min(this.times.length - 1, Math.max(0, (this.at < 0 ? this.times.length : this.at) + step));
      this.say();
    });
  }

  draw(times, series) {
    this.times = times;
    this.series = series;
    const end = times.at(-1) ?? 0;
    this.span = Math.min(3600, Math.max(120, end - (times[0] ?? 0))); // seconds that are shown
    const most = nice(Math.max(...series.flatMap((s) => s.values), 0));
    const x = (i) => W - (W * (end - times[i])) / this.span, y = (v) => H - 1 - ((H - 4) * v) / most;
    this.xOf = x;
    const lines = [0.5].map((f) => this.svgEl('path', { class: 'grid', d: `M0 ${y(most * f)}H${W}` }));
    for (const s of series) {
      const d = s.values.map((v, i) => `${i ? 'L' : 'M'}${x(i).toFixed(1)} ${y(v).toFixed(1)}`).join('');
      if (s.values.length > 1) lines.push(this.svgEl('path', { class: `area ${s.style}`, d: `${d}L${W} ${H}L${x(0).toFixed(1)} ${H}z` }));
      lines.push(this.svgEl('path', { class: `line ${s.style}`, d }));
    }
    this.cursor = this.svgEl('path', { class: 'cursor', d: '' });
    this.svg.replaceChildren(...lines, this.cursor);
    this.y.children[0].textContent = this.short(most, this.unit);
    this.y.children[1].textContent = this.short(most / 2, this.unit);
    this.x.children[0].textContent = ago(this.span);
    this.x.children[1].textContent = ago(this.span / 2);
    this.svg.setAttribute('aria-label', `${this.title}, the last ${ago(this.span).replace(' ago', '')}: ` + series.map((s) => `${s.name} ${this.short(s.values.at(-1) || 0, this.unit)} now, ${this.short(Math.max(0, ...s.values), this.unit)} at most`).join('; '));
    this.say();
  }

  look(f) {
    if (!this.times.length) return;
    const want = f * W;
    this.at = this.times.reduce((best, _, i) => (Math.abs(this.xOf(i) - want) < Math.abs(this.xOf(best) - want) ? i : best), 0);
    this.say();
  }

  say() {
    const i = Math.min(this.at, this.times.length - 1), last = this.times.length - 1;
    if (last < 0) return this.legend.replaceChildren(this.el('span', { class: 'hint' }, 'begins in a moment'));
    const when = i >= 0 && i < last ? ago(this.times[last] - this.times[i]) : 'now';
    this.legend.replaceChildren(...this.series.map((s) => this.el('span', { class: s.style }, `${s.name} ${this.short((i >= 0 ? s.values[i] : s.values.at(-1)) || 0, this.unit)}`)), this.el('span', { class: 'hint' }, when));
    this.cursor?.setAttribute('d', i >= 0 ? `M${this.xOf(i)} 0V${H}` : '');
  }
}

// nice is a round number from n up.
function nice(n) {
  if (n <= 0) return 1;
  const p = 10 ** Math.floor(Math.log10(n));
  return [1, 2, 5, 10].find((m) => m * p >= n) * p;
}

function ago(s) { return s < 90 ? `${Math.round(s)} s ago` : `${Math.round(s / 60)} min ago`; }
