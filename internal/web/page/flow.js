// The packet-flow diagram: hooks with their tables, routing, local sockets and interfaces.
import { count, short } from './page.js';

const NS = 'http://www.w3.org/2000/svg';
export const svgEl = (name, attrs = {}, ...inside) => {
  const e = document.createElementNS(NS, name);
  for (const [k, v] of Object.entries(attrs)) e.setAttribute(k, v);
  e.append(...inside);
  return e;
};

// What a packet meets in each hook, in order. STEPS are no tables: they are shown where they happen.
const HOOKS = {
  PREROUTING: ['raw', 'conntrack', 'mangle', 'nat'],
  INPUT: ['mangle', 'filter', 'security', 'nat', 'confirm'],
  FORWARD: ['mangle', 'filter', 'security'],
  OUTPUT: ['raw', 'conntrack', 'mangle', 'nat', 'filter', 'security'],
  POSTROUTING: ['mangle', 'nat', 'confirm'],
};
const LAST = { PREROUTING: 'mangle', INPUT: 'security', FORWARD: 'security', OUTPUT: 'security', POSTROUTING: 'mangle' }; // that all packets meet
const STEPS = { conntrack: 'conntrack', confirm: 'conntrack: confirm' };
const TITLES = { in: 'interfaces in', out: 'interfaces out', route: 'routing', oroute: 'routing', local: 'local sockets' };
const CHIP = 24, GAP = 4, HEAD = 50, MOST = 6;

// Two drawings of the same, for wide windows and for phones: places of boxes (x, width, and the
// y of the middle or the box above), and the sides that arrows leave and enter by.
const WIDE = {
  view: [1400, 520],
  boxes: { in: [8, 176, 122], PREROUTING: [250, 190, 122], route: [508, 124, 122], FORWARD: [700, 190, 122], POSTROUTING: [960, 190, 122], out: [1218, 174, 122],
    INPUT: [475, 190, 392], local: [727, 112, 392], oroute: [901, 104, 392], OUTPUT: [1067, 190, 392] },
  edges: { 'in-PREROUTING': 'rl', 'PREROUTING-route': 'rl', 'route-FORWARD': 'rl', 'FORWARD-POSTROUTING': 'rl', 'POSTROUTING-out': 'rl', 'route-INPUT': 'bt', 'INPUT-local': 'rl', 'local-oroute': 'rl', 'oroute-OUTPUT': 'rl', 'OUTPUT-POSTROUTING': 'tb' },
};
const TALL = {
  view: [410, 0],
  columns: [[8, 188, ['in', 'PREROUTING', 'route', 'FORWARD', 'POSTROUTING', 'out']], [214, 188, ['', 'INPUT', 'local', 'oroute', 'OUTPUT']]],
  edges: { 'in-PREROUTING': 'bt', 'PREROUTING-route': 'bt', 'route-FORWARD': 'bt', 'FORWARD-POSTROUTING': 'bt', 'POSTROUTING-out': 'bt', 'route-INPUT': 'rl', 'INPUT-local': 'bt', 'local-oroute': 'bt', 'oroute-OUTPUT': 'bt', 'OUTPUT-POSTROUTING': 'br' },
};

export class Flow {
  constructor(home, open) {
    this.home = home;
    this.open = open;
    this.rows = 2;
    this.narrow = window.matchMedia('(max-width: 760px)');
    this.narrow.addEventListener('change', () => this.redraw());
    this.draw();
  }

  redraw() {
    this.draw();
    if (this.args) this.update(...this.args);
    if (this.lit) this.light(...this.lit);
  }

  height(id) {
    if (HOOKS[id]) return HEAD + HOOKS[id].length * (CHIP + GAP) + 6;
    return id === 'in' || id === 'out' ? 46 + this.rows * 15 : 56;
  }

  // place finds every box's place: [x, y, width, height].
  place(plan) {
    const at = {};
    for (const [id, [x, w, middle]] of Object.entries(plan.boxes || {})) at[id] = [x, middle - this.height(id) / 2, w, this.height(id)];
    if (!plan.columns) return [at, plan.view[1]];
    const [left, right] = plan.columns, gap = 50;
    const stack = ([x, w, ids], y) => { for (const id of ids) if (id) { at[id] = [x, y, w, this.height(id)]; y += this.height(id) + gap; } return y; };
    stack(left, 10);
    at.route[0] += 40; // room for the arrow to INPUT
    at.route[2] -= 80;
    stack(right, at.route[1] + at.route[3] / 2 - this.height('INPUT') / 2);
    // The way back from OUTPUT goes below it.
    const down = Math.max(0, at.OUTPUT[1] + at.OUTPUT[3] + 50 - at.POSTROUTING[3] / 2 - at.POSTROUTING[1]);
    at.POSTROUTING[1] += down;
    at.out[1] += down;
    return [at, Math.max(at.out[1] + at.out[3], at.OUTPUT[1] + at.OUTPUT[3]) + 32];
  }

  draw() {
    const plan = this.narrow.matches ? TALL : WIDE;
    const [at, height] = this.place(plan);
    this.at = at;
    const svg = svgEl('svg', { viewBox: `0 0 ${plan.view[0]} ${height}`, role: 'group', 'aria-label': 'Packet flow through the hooks' });
    const tip = (id, color) => svgEl('marker', { id, viewBox: '0 0 8 8', refX: 7, refY: 4, markerWidth: 9, markerHeight: 9, markerUnits: 'userSpaceOnUse', orient: 'auto' }, svgEl('path', { d: 'M0 0L8 4L0 8z', fill: `var(${color})` }));
    svg.append(svgEl('defs', {}, tip('tip', '--soft'), tip('tiplit', '--glow')));
    this.nodes = {};
    this.edges = {};
    this.chips = {};
    for (const [id, sides] of Object.entries(plan.edges)) this.edge(svg, id, sides);
    for (const id of Object.keys(at)) this.box(svg, id);
    for (const e of Object.values(this.edges)) svg.append(e.label);
    this.home.replaceChildren(svg);
  }

  anchor(id, side) {
    const [x, y, w, h] = this.at[id];
    return { l: [x, y + h / 2, -1, 0], r: [x + w, y + h / 2, 1, 0], t: [x + w / 2, y, 0, -1], b: [x + w / 2, y + h, 0, 1] }[side];
  }

  edge(svg, id, sides) {
    const [from, to] = id.split('-');
    const [x1, y1, dx1, dy1] = this.anchor(from, sides[0]), [x2, y2, dx2, dy2] = this.anchor(to, sides[1]);
    const bend = Math.max(12, Math.hypot(x2 - x1, y2 - y1) / 2.4);
    const path = svgEl('path', { class: 'edge', 'marker-end': 'url(#tip)', d: `M${x1} ${y1}C${x1 + dx1 * bend} ${y1 + dy1 * bend} ${x2 + dx2 * bend} ${y2 + dy2 * bend} ${x2} ${y2}` });
    // Packets on one side of the arrow, bytes on the other.
    const across = dx1 !== 0, x = (x1 + x2) / 2 + (across ? 0 : Math.abs(x2 - x1) / 2), y = (y1 + y2) / 2;
    const anchor = across ? 'middle' : 'start';
    const p = svgEl('tspan', { x: across ? x : x + 9, y: across ? y - 8 : y - 3 }), b = svgEl('tspan', { x: across ? x : x + 9, y: across ? y + 17 : y + 11 });
    const label = svgEl('text', { class: 'rate', 'text-anchor': anchor }, p, b);
    svg.append(path);
    this.edges[id] = { path, label, p, b };
  }

  box(svg, id) {
    const [x, y, w, h] = this.at[id], hook = HOOKS[id], middle = x + w / 2;
    const text = (cls, dy, inside = '') => svgEl('text', { class: cls, x: middle, y: y + dy, 'text-anchor': 'middle' }, inside);
    const rate = text('rate', 36);
    const drops = [text('drop', h + 13), text('drop', h + 25)];
    if (id === 'route') drops.forEach((d, i) => d.setAttribute('y', y - 18 + i * 12));
    const g = svgEl('g', { 'data-node': id, class: 'node' },
      svgEl('rect', { class: 'box' + (hook ? ' hook' : ''), x, y, width: w, height: h, rx: 10 }), text('title', 20, TITLES[id] || id), rate, ...drops);
    const node = (this.nodes[id] = { g, rate, drops, rows: [] });
    if (id === 'in' || id === 'out') {
      for (let i = 0; i < this.rows; i++) {
        const name = svgEl('text', { class: 'rate', x: x + 10, y: y + 54 + i * 15 }), value = svgEl('text', { class: 'rate', x: x + w - 10, y: y + 54 + i * 15, 'text-anchor': 'end' });
        node.rows.push({ name, value });
        g.append(name, value);
      }
    }
    (hook || []).forEach((table, i) => g.append(this.chip(id, table, x + 8, y + HEAD + i * (CHIP + GAP), w - 16)));
    svg.append(g);
  }

  chip(hook, table, x, y, w) {
    const step = STEPS[table];
    const name = svgEl('text', { class: 'name', x: x + 8, y: y + 16.5 }, step || table);
    const rate = svgEl('text', { class: 'rate', x: x + w - 6, y: y + 16.5, 'text-anchor': 'end' });
    const g = svgEl('g', { class: 'chip' + (step ? ' step' : ''), 'data-chip': `${hook}/${table}` }, svgEl('rect', { x, y, width: w, height: CHIP, rx: 6 }), name, rate);
    if (!step) {
      g.setAttribute('role', 'button');
      g.setAttribute('tabindex', '0');
      g.setAttribute('aria-label', `${table} table, chain ${hook}`);
      g.addEventListener('click', () => this.open(table, hook));
      g.addEventListener('keydown', (e) => { if (e.key === 'Enter' || e.key === ' ') { e.preventDefault(); this.open(table, hook); } });
    }
    this.chips[`${hook}/${table}`] = { g, rate };
    return g;
  }

  // update writes the rates between two readings.
  update(a, b, family) {
    this.args = [a, b, family];
    const rows = Math.min(MOST, Math.max(1, b.interfaces.length));
    if (rows !== this.rows) { this.rows = rows; this.draw(); if (this.lit) this.light(...this.lit); }
    const dt = a ? b.uptime_seconds - a.uptime_seconds : 0;
    const per = (now, then) => (dt > 0 ? Math.max(0, now - then) / dt : 0);
    // A chain counts anew when it gets its first rule or loses its last.
    const rate = (now, then) => (now.rules > 0 === then.rules > 0 ? { p: per(now.packets, then.packets), b: per(now.bytes, then.bytes) } : { p: 0, b: 0 });
    const mine = (x) => !family || x.family === family;
    const chain = (st, hook, table) => {
      const cs = (st?.tables || []).filter((t) => t.name === table && mine(t)).flatMap((t) => t.chains.filter((c) => c.name === hook));
      return { ...sum(cs, 'entered_packets', 'entered_bytes'), rules: cs.reduce((n, c) => n + c.num_rules, 0), policy: cs.map((c) => c.policy) };
    };
    const entered = Object.fromEntries(Object.keys(HOOKS).map((h) => [h, rate(chain(b, h, HOOKS[h][0]), chain(a, h, HOOKS[h][0]))]));
    const lost = this.dropped(a, b, per);
    // What leaves a hook is what its last table met, without what that one and NAT drop.
    const left = (hook) => {
      const last = LAST[hook], e = rate(chain(b, hook, last), chain(a, hook, last));
      const late = (lost[hook] || []).filter((d) => [last, 'nat'].includes(d.reason.split('.')[0])).reduce((n, d) => n + d.rate, 0);
      const p = Math.max(0, e.p - late);
      return { p, b: e.p > 0 ? (e.b * p) / e.p : 0 };
    };
    for (const [id, node] of Object.entries(this.nodes)) {
      const ds = lost[id] || [];
      node.drops[0].textContent = ds.length > 0 ? `${short(ds[0].rate)}/s ${ds[0].reason}` : '';
      node.drops[1].textContent = ds.length === 2 ? `${short(ds[1].rate)}/s ${ds[1].reason}` : ds.length > 2 ? `and ${ds.length - 1} other reasons` : '';
    }
    for (const hook of Object.keys(HOOKS)) {
      this.rate(hook, entered[hook]);
      for (const table of HOOKS[hook]) {
        const chip = this.chips[`${hook}/${table}`];
        if (STEPS[table]) { if (hook === 'PREROUTING') chip.rate.textContent = count(b.conntrack.count, 'flow'); continue; }
        const now = chain(b, hook, table), r = rate(now, chain(a, hook, table));
        chip.rate.textContent = r.p > 0 ? `${short(r.p)}/s · ${short(r.b, 'B/s')}` : now.rules > 0 ? count(now.rules, 'rule') : '';
        chip.g.classList.toggle('used', now.rules > 0 || now.policy.includes('DROP'));
        chip.g.setAttribute('aria-label', `${table} table, chain ${hook}: ${now.rules} rules, policy ${[...new Set(now.policy)].join(' and ')}, ${short(r.p)} packets and ${short(r.b, 'B')} per second`);
      }
    }
    const total = { rx: this.interfaces(a, b, 'rx', 'in', per), tx: this.interfaces(a, b, 'tx', 'out', per) };
    const through = { p: entered.FORWARD.p + entered.INPUT.p, b: entered.FORWARD.b + entered.INPUT.b };
    this.rate('route', through);
    this.rate('oroute', entered.OUTPUT);
    const inside = left('INPUT');
    this.rate('local', { p: inside.p + entered.OUTPUT.p, b: inside.b + entered.OUTPUT.b });
    this.flow('in-PREROUTING', family ? entered.PREROUTING : total.rx);
    this.flow('PREROUTING-route', left('PREROUTING'));
    this.flow('route-FORWARD', entered.FORWARD);
    this.flow('route-INPUT', entered.INPUT);
    this.flow('INPUT-local', inside);
    this.flow('local-oroute', entered.OUTPUT);
    this.flow('oroute-OUTPUT', entered.OUTPUT);
    this.flow('OUTPUT-POSTROUTING', left('OUTPUT'));
    this.flow('FORWARD-POSTROUTING', left('FORWARD'));
    this.flow('POSTROUTING-out', family ? left('POSTROUTING') : total.tx);
  }

  // dropped gives what is dropped now, by box: the most first.
  dropped(a, b, per) {
    const then = new Map((a?.drops || []).map((d) => [d.reason, d.packets])), out = {};
    for (const d of a ? b.drops || [] : []) {
      const rate = per(d.packets, then.get(d.reason) ?? 0);
      if (rate > 0) (out[placeOf(d.reason)] ??= []).push({ reason: d.reason, rate });
    }
    for (const ds of Object.values(out)) ds.sort((x, y) => y.rate - x.rate);
    return out;
  }

  interfaces(a, b, dir, id, per) {
    const all = b.interfaces.map((i) => {
      const o = a?.interfaces.find((x) => x.name === i.name);
      return { name: i.name, up: i.state === 'up', p: o ? per(i[dir + '_packets'], o[dir + '_packets']) : 0, b: o ? per(i[dir + '_bytes'], o[dir + '_bytes']) : 0 };
    });
    const more = all.length > this.rows, shown = more ? all.slice(0, this.rows - 1) : all;
    this.nodes[id].rows.forEach((row, i) => {
      const r = shown[i];
      row.name.textContent = r ? r.name + (r.up ? '' : ' (gone)') : more && i === this.rows - 1 ? `${all.length - this.rows + 1} more` : '';
      row.value.textContent = r ? `${short(r.p)}/s · ${short(r.b, 'B/s')}` : '';
    });
    const t = { p: all.reduce((n, r) => n + r.p, 0), b: all.reduce((n, r) => n + r.b, 0) };
    this.rate(id, t);
    return t;
  }

  rate(id, { p, b }) { this.nodes[id].rate.textContent = `${short(p)}/s · ${short(b, 'B/s')}`; }

  flow(id, { p, b }) {
    const e = this.edges[id];
    e.path.classList.toggle('on', p > 0);
    e.path.style.strokeWidth = 2 + Math.min(5, Math.log10(1 + p));
    e.p.textContent = short(p) + '/s';
    e.b.textContent = short(b, 'B/s');
  }

  // light marks a traced packet's way up to a step, the last of it most; null takes the marks away.
  light(trace, upto) {
    this.lit = trace ? [trace, upto] : null;
    for (const e of this.home.querySelectorAll('.lit, .now, .dead')) e.classList.remove('lit', 'now', 'dead');
    for (const e of Object.values(this.edges)) e.path.setAttribute('marker-end', 'url(#tip)');
    if (!trace) return;
    let from = '', now = null;
    const go = (id) => {
      const n = this.nodes[id];
      if (!n) return;
      n.g.classList.add('lit');
      now = n.g;
      const e = this.edges[`${from}-${id}`];
      if (e) { e.path.classList.add('lit'); e.path.setAttribute('marker-end', 'url(#tiplit)'); }
      from = id;
    };
    const touch = (hook, table) => { const c = this.chips[`${hook}/${table}`]; if (c) { c.g.classList.add('lit'); now = c.g; } };
    let hook = '';
    go(trace.in ? 'in' : 'local');
    for (const s of trace.steps.slice(0, upto + 1)) {
      if (s.kind === 'hook') { hook = s.hook; go(hook); }
      else if (s.kind === 'table' || s.kind === 'rule' || s.kind === 'policy' || s.kind === 'return') touch(s.hook || hook, s.table);
      else if (s.kind === 'conntrack') touch(s.hook || hook, s.text === 'confirmed' ? 'confirm' : 'conntrack');
      else if (s.kind === 'route') go(!trace.in && hook !== 'PREROUTING' ? 'oroute' : 'route');
      else if (s.kind === 'deliver') go('local');
      else if (s.kind === 'send') go('out');
      else if (s.kind === 'drop') this.nodes[from]?.g.classList.add('dead');
    }
    now?.classList.add('now');
  }
}

const sum = (list, packets, bytes) => ({ packets: list.reduce((n, x) => n + x[packets], 0), bytes: list.reduce((n, x) => n + x[bytes], 0) });

// placeOf names the box that a drop reason belongs to.
function placeOf(reason) {
  const [room, hook] = reason.split('.');
  if (HOOKS[hook]) return hook;
  if (room === 'conntrack' || room === 'frag') return 'PREROUTING';
  if (room === 'local' || room === 'icmp') return 'local';
  if (room === 'ip' || room === 'ipv6') return 'route';
  if (room === 'nat' || room === 'uplink') return 'POSTROUTING';
  return room === 'link' && /down|gone|write|send|neighbour/.test(hook) ? 'out' : 'in';
}
