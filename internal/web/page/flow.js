// The packet-flow diagram: hooks with their tables, routing, local sockets and interfaces.
import { short } from './page.js';

const NS = 'http://www.w3.org/2000/svg';
const svgEl = (name, attrs = {}, ...inside) => {
  const e = document.createElementNS(NS, name);
  for (const [k, v] of Object.entries(attrs)) e.setAttribute(k, v);
  e.append(...inside);
  return e;
};

// What a packet meets in each hook, in order. Connection tracking is no table, it is shown where it happens.
const HOOKS = {
  PREROUTING: ['raw', 'conntrack', 'mangle', 'nat'],
  INPUT: ['mangle', 'filter', 'security', 'nat'],
  FORWARD: ['mangle', 'filter', 'security'],
  OUTPUT: ['raw', 'conntrack', 'mangle', 'nat', 'filter', 'security'],
  POSTROUTING: ['mangle', 'nat'],
};

// Two drawings of the same: for wide windows and for phones.
const WIDE = {
  view: [1290, 560],
  boxes: { in: [10, 110, 160], PREROUTING: [215, 80, 180], route: [445, 140, 120], FORWARD: [640, 96, 180], POSTROUTING: [900, 110, 180], out: [1120, 110, 160], INPUT: [415, 335, 180], local: [645, 400, 120], OUTPUT: [815, 290, 180], reroute: [1045, 385, 120] },
  edges: { 'in-PREROUTING': 'rl', 'PREROUTING-route': 'rl', 'route-FORWARD': 'rl', 'FORWARD-POSTROUTING': 'rl', 'POSTROUTING-out': 'rl', 'route-INPUT': 'bt', 'INPUT-local': 'rl', 'local-OUTPUT': 'rl', 'OUTPUT-reroute': 'rl', 'reroute-POSTROUTING': 'tb' },
};
const TALL = {
  view: [410, 1230],
  boxes: { in: [10, 10, 185], PREROUTING: [10, 165, 185], route: [45, 375, 120], FORWARD: [10, 560, 185], POSTROUTING: [10, 930, 185], out: [10, 1090, 185], INPUT: [220, 300, 182], local: [250, 520, 120], OUTPUT: [220, 630, 182], reroute: [250, 930, 120] },
  edges: { 'in-PREROUTING': 'bt', 'PREROUTING-route': 'bt', 'route-FORWARD': 'bt', 'FORWARD-POSTROUTING': 'bt', 'POSTROUTING-out': 'bt', 'route-INPUT': 'rl', 'INPUT-local': 'bt', 'local-OUTPUT': 'bt', 'OUTPUT-reroute': 'bt', 'reroute-POSTROUTING': 'lr' },
};
const TITLES = { in: 'interfaces in', out: 'interfaces out', route: 'routing', reroute: 'routing', local: 'local sockets' };
const CHIP = 24, GAP = 4, HEAD = 52, ROWS = 6;

export class Flow {
  constructor(home, open) {
    this.home = home;
    this.open = open;
    this.narrow = window.matchMedia('(max-width: 700px)');
    this.narrow.addEventListener('change', () => { this.draw(); if (this.args) this.update(...this.args); this.light(this.trace, true); });
    this.draw();
  }

  height(id) {
    if (HOOKS[id]) return HEAD + HOOKS[id].length * (CHIP + GAP) + 6;
    return id === 'in' || id === 'out' ? 42 + ROWS * 15 : 62;
  }

  draw() {
    const plan = (this.plan = this.narrow.matches ? TALL : WIDE);
    const svg = svgEl('svg', { viewBox: `0 0 ${plan.view.join(' ')}`, role: 'group', 'aria-label': 'Packet flow through the hooks' });
    svg.append(svgEl('defs', {}, svgEl('marker', { id: 'tip', viewBox: '0 0 8 8', refX: 7, refY: 4, markerWidth: 9, markerHeight: 9, markerUnits: 'userSpaceOnUse', orient: 'auto' }, svgEl('path', { d: 'M0 0L8 4L0 8z', fill: 'var(--soft)' }))));
    this.nodes = {};
    this.edges = {};
    this.chips = {};
    for (const [id, sides] of Object.entries(plan.edges)) this.edge(svg, id, sides);
    for (const id of Object.keys(plan.boxes)) this.box(svg, id);
    this.home.replaceChildren(svg);
  }

  anchor(id, side) {
    const [x, y, w] = this.plan.boxes[id], h = this.height(id);
    return { l: [x, y + h / 2, -1, 0], r: [x + w, y + h / 2, 1, 0], t: [x + w / 2, y, 0, -1], b: [x + w / 2, y + h, 0, 1] }[side];
  }

  edge(svg, id, sides) {
    const [from, to] = id.split('-');
    const [x1, y1, dx1, dy1] = this.anchor(from, sides[0]), [x2, y2, dx2, dy2] = this.anchor(to, sides[1]);
    const bend = Math.max(14, Math.hypot(x2 - x1, y2 - y1) / 2.4);
    const path = svgEl('path', { class: 'edge', 'marker-end': 'url(#tip)', d: `M${x1} ${y1}C${x1 + dx1 * bend} ${y1 + dy1 * bend} ${x2 + dx2 * bend} ${y2 + dy2 * bend} ${x2} ${y2}` });
    const across = dx1 !== 0;
    const label = svgEl('text', { class: 'rate', x: (x1 + x2) / 2 + (across ? 0 : 6), y: (y1 + y2) / 2 - (across ? 8 : 0), 'text-anchor': across ? 'middle' : 'start' });
    const title = svgEl('title');
    path.append(title);
    svg.append(path, label);
    this.edges[id] = { path, label, title };
  }

  box(svg, id) {
    const [x, y, w] = this.plan.boxes[id], h = this.height(id), hook = HOOKS[id];
    const rate = svgEl('text', { class: 'rate', x: x + w / 2, y: y + 35, 'text-anchor': 'middle' });
    const drop = svgEl('text', { class: 'drop', x: x + w / 2, y: y + 48, 'text-anchor': 'middle' });
    const g = svgEl('g', { 'data-node': id },
      svgEl('rect', { class: 'box' + (hook ? ' hook' : ''), x, y, width: w, height: h, rx: 10 }),
      svgEl('text', { class: 'title', x: x + w / 2, y: y + 19, 'text-anchor': 'middle' }, TITLES[id] || id), rate, drop);
    const node = (this.nodes[id] = { g, rate, drop, rows: [] });
    if (id === 'in' || id === 'out') {
      drop.setAttribute('y', y + h - 5);
      for (let i = 0; i < ROWS; i++) {
        const t = svgEl('text', { class: 'rate', x: x + 10, y: y + 52 + i * 15 });
        node.rows.push(t);
        g.append(t);
      }
    }
    (hook || []).forEach((table, i) => g.append(this.chip(id, table, x + 10, y + HEAD + i * (CHIP + GAP), w - 20)));
    svg.append(g);
  }

  chip(hook, table, x, y, w) {
    const plain = table === 'conntrack';
    const name = svgEl('text', { class: 'name', x: x + 8, y: y + 16.5 }, table);
    const rate = svgEl('text', { class: 'rate', x: x + w - 6, y: y + 16.5, 'text-anchor': 'end' });
    const g = svgEl('g', { class: 'chip' + (plain ? ' step' : ''), 'data-chip': `${hook}/${table}` }, svgEl('rect', { x, y, width: w, height: CHIP, rx: 6 }), name, rate);
    if (!plain) {
      g.setAttribute('role', 'button');
      g.setAttribute('tabindex', '0');
      g.addEventListener('click', () => this.open(table, hook));
      g.addEventListener('keydown', (e) => { if (e.key === 'Enter' || e.key === ' ') { e.preventDefault(); this.open(table, hook); } });
    }
    this.chips[`${hook}/${table}`] = { g, rate };
    return g;
  }

  // update writes the rates between two readings.
  update(a, b, family) {
    this.args = [a, b, family];
    const dt = a ? b.uptime_seconds - a.uptime_seconds : 0;
    const per = (now, then) => (dt > 0 ? Math.max(0, now - then) / dt : 0);
    const chain = (st, hook, table) => {
      let packets = 0, bytes = 0, rules = 0, policy = [];
      for (const t of st?.tables || []) if (t.name === table && (!family || t.family === family)) {
        for (const c of t.chains) if (c.name === hook) { packets += c.entered_packets; bytes += c.entered_bytes; rules += c.num_rules; policy.push(c.policy); }
      }
      return { packets, bytes, rules, policy };
    };
    const entered = (hook) => {
      const first = HOOKS[hook][0], now = chain(b, hook, first), then = chain(a, hook, first);
      return { p: per(now.packets, then.packets), b: per(now.bytes, then.bytes) };
    };
    const dropped = (hook) => {
      const sum = (st) => (st?.drops || []).reduce((n, d) => n + (d.reason.split('.')[1] === hook ? d.packets : 0), 0);
      return per(sum(b), a ? sum(a) : 0);
    };
    const leaving = (hook) => {
      const e = entered(hook), p = Math.max(0, e.p - dropped(hook));
      return { p, b: e.p > 0 ? (e.b * p) / e.p : 0 };
    };
    for (const hook of Object.keys(HOOKS)) {
      const e = entered(hook), d = dropped(hook), node = this.nodes[hook];
      this.rate(node.rate, e);
      node.drop.textContent = d > 0 ? `${short(d)} dropped/s` : '';
      for (const table of HOOKS[hook]) {
        const chip = this.chips[`${hook}/${table}`];
        if (table === 'conntrack') { chip.rate.textContent = hook === 'PREROUTING' ? short(b.conntrack.count) + ' flows' : ''; continue; }
        const now = chain(b, hook, table), then = chain(a, hook, table), p = per(now.packets, then.packets);
        chip.rate.textContent = short(p) + '/s';
        chip.g.classList.toggle('used', now.rules > 0 || now.policy.includes('DROP'));
        chip.g.setAttribute('aria-label', `${table} table, chain ${hook}: ${now.rules} rules, policy ${now.policy.join(' and ')}, ${short(p)} packets per second`);
      }
    }
    const ifaces = (dir) => {
      const rows = b.interfaces.map((i) => {
        const o = a?.interfaces.find((x) => x.name === i.name);
        return { name: i.name, up: i.state === 'up', p: o ? per(i[dir + '_packets'], o[dir + '_packets']) : 0, b: o ? per(i[dir + '_bytes'], o[dir + '_bytes']) : 0 };
      });
      const node = this.nodes[dir === 'rx' ? 'in' : 'out'];
      const shown = rows.length > ROWS ? rows.slice(0, ROWS - 1) : rows;
      node.rows.forEach((t, i) => {
        const r = shown[i];
        t.textContent = r ? `${r.name}${r.up ? '' : ' (gone)'} ${short(r.p)}/s ${short(r.b * 8, 'bit/s')}` : i === ROWS - 1 && rows.length > ROWS ? `${rows.length - ROWS + 1} more` : '';
      });
      const sum = rows.reduce((s, r) => ({ p: s.p + r.p, b: s.b + r.b }), { p: 0, b: 0 });
      this.rate(node.rate, sum);
      return sum;
    };
    const rx = ifaces('rx'), tx = ifaces('tx'), fw = entered('FORWARD'), inp = entered('INPUT');
    this.rate(this.nodes.route.rate, { p: fw.p + inp.p, b: fw.b + inp.b });
    this.rate(this.nodes.reroute.rate, leaving('OUTPUT'));
    this.rate(this.nodes.local.rate, { p: per(b.delivered_packets, a?.delivered_packets ?? 0) + per(b.sent_packets, a?.sent_packets ?? 0), b: leaving('INPUT').b + entered('OUTPUT').b });
    const lost = per((b.drops || []).reduce((n, d) => n + d.packets, 0), (a?.drops || []).reduce((n, d) => n + d.packets, 0));
    this.nodes.in.drop.textContent = lost > 0 && a ? `${short(lost)} dropped/s in all` : '';
    this.flow('in-PREROUTING', family ? entered('PREROUTING') : rx);
    this.flow('PREROUTING-route', { p: fw.p + inp.p, b: fw.b + inp.b });
    this.flow('route-FORWARD', fw);
    this.flow('route-INPUT', inp);
    this.flow('INPUT-local', leaving('INPUT'));
    this.flow('local-OUTPUT', entered('OUTPUT'));
    this.flow('OUTPUT-reroute', leaving('OUTPUT'));
    this.flow('reroute-POSTROUTING', leaving('OUTPUT'));
    this.flow('FORWARD-POSTROUTING', leaving('FORWARD'));
    this.flow('POSTROUTING-out', family ? leaving('POSTROUTING') : tx);
  }

  rate(text, { p, b }) { text.textContent = `${short(p)}/s · ${short(b * 8, 'bit/s')}`; }

  flow(id, { p, b }) {
    const e = this.edges[id];
    e.path.classList.toggle('on', p > 0);
    e.path.style.strokeWidth = 2 + Math.min(6, Math.log10(1 + p));
    e.label.textContent = p > 0 ? short(p) + '/s' : '';
    e.title.textContent = `${short(p)} packets/s, ${short(b * 8, 'bit/s')}`;
  }

  // light marks a traced packet's way, step by step; null takes the marks away.
  light(trace, atOnce) {
    this.trace = trace;
    for (const t of this.timers || []) clearTimeout(t);
    this.timers = [];
    for (const e of this.home.querySelectorAll('.lit')) e.classList.remove('lit');
    if (!trace) return;
    const way = [], go = (node) => { if (way.at(-1)?.node !== node) way.push({ node }); };
    let hook = '';
    if (trace.in) go('in'); else go('local');
    for (const s of trace.steps) {
      if (s.kind === 'hook') { hook = s.hook; go(hook); }
      else if (s.kind === 'table') way.push({ chip: `${s.hook || hook}/${s.table}` });
      else if (s.kind === 'conntrack') way.push({ chip: `${s.hook || hook}/conntrack` });
      else if (s.kind === 'route') go(hook === 'OUTPUT' ? 'reroute' : 'route');
      else if (s.kind === 'deliver') go('local');
      else if (s.kind === 'send') go('out');
    }
    const still = atOnce || window.matchMedia('(prefers-reduced-motion: reduce)').matches;
    let from = '', at = 0;
    for (const w of way) {
      const mark = () => {
        if (w.chip) { this.chips[w.chip]?.g.classList.add('lit'); return; }
        this.nodes[w.node]?.g.classList.add('lit');
        this.edges[`${from}-${w.node}`]?.path.classList.add('lit');
        from = w.node;
      };
      if (still) mark(); else this.timers.push(setTimeout(mark, (at += 120)));
    }
  }
}
