// The page: the packet flow with live rates, rules, traces, connections, graphs.
import { Flow } from './flow.js';

const $ = (id) => document.getElementById(id);
let family = '', last = null, before = null, writable = false;

export const el = (name, attrs = {}, ...inside) => {
  const e = document.createElement(name);
  for (const [k, v] of Object.entries(attrs)) {
    if (k.startsWith('on')) e.addEventListener(k.slice(2), v);
    else if (v !== null && v !== undefined && v !== false) e.setAttribute(k, v === true ? '' : v);
  }
  e.append(...inside);
  return e;
};

// short writes a number as people read it: 1.2k, 35M.
export const short = (n, unit = '') => {
  let i = 0;
  while (n >= 1000 && i < 5) { n /= 1000; i++; }
  const digits = n >= 100 || (i === 0 && Number.isInteger(n)) ? 0 : n >= 10 ? 1 : n > 0 && n < 0.1 ? 2 : 1;
  return n.toFixed(digits) + (unit ? ' ' : '') + ['', 'k', 'M', 'G', 'T', 'P'][i] + unit;
};

const get = async (path, options) => {
  const r = await fetch(path, options);
  if (!r.ok) throw new Error((await r.text()).trim() || r.statusText);
  return r.json();
};
const post = (path, body) => get(path, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) });

const flow = new Flow($('flow'), openRules);

// --- live numbers

function state(kind, text) {
  $('state').className = kind;
  if ($('statetext').textContent !== text) $('statetext').textContent = text;
}

function connect() {
  const stream = new EventSource('api/stream');
  stream.onmessage = (m) => { before = last; last = JSON.parse(m.data); show(); };
  stream.onerror = () => { state('bad', 'the router does not answer'); last = before = null; };
}

function duration(s) {
  const parts = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']], out = [];
  for (const [size, name] of parts) if (s >= size && out.length < 2) { out.push(Math.floor(s / size) + ' ' + name); s %= size; }
  return out.join(' ') || '0 s';
}

function show() {
  const gone = last.interfaces.filter((i) => i.state !== 'up').map((i) => i.name);
  state(gone.length ? 'bad' : 'ok', gone.length ? gone.join(', ') + ' gone' : 'routing');
  $('who').textContent = `${last.version} · ${(last.config || 'embedded').split('/').pop()} · up ${duration(last.uptime_seconds)} · ${short(last.conntrack.count)} connections`;
  writable = last.writable;
  $('edit').hidden = !writable;
  const names = last.interfaces.map((i) => i.name), choice = $('in');
  if ([...choice.options].slice(1).map((o) => o.value).join() !== names.join()) {
    choice.replaceChildren(el('option', { value: '' }, 'by its source'), ...names.map((n) => el('option', { value: n }, n)));
  }
  flow.update(before, last, family);
  drops();
}

function drops() {
  const old = new Map((before?.drops || []).map((d) => [d.reason, d.packets]));
  const dt = before ? last.uptime_seconds - before.uptime_seconds : 0;
  const rows = (last.drops || []).slice(0, 40).map((d) => el('tr', {},
    el('td', { class: 'm', title: d.doc }, d.reason), el('td', { class: 'n' }, short(d.packets)),
    el('td', { class: 'n' }, dt > 0 ? short((d.packets - (old.get(d.reason) ?? 0)) / dt) : '')));
  $('drops').tBodies[0].replaceChildren(...(rows.length ? rows : [el('tr', {}, el('td', { colspan: 3 }, 'Nothing was dropped.'))]));
}

for (const b of document.querySelectorAll('[data-family]')) {
  b.onclick = () => {
    family = b.dataset.family;
    for (const o of document.querySelectorAll('[data-family]')) o.setAttribute('aria-pressed', o === b);
    if (last) show();
    if (opened) openRules(opened.table, opened.chain);
  };
}

// --- rules

let opened = null, ruleCounts = new Map(), ruleTimer = 0;

async function openRules(table, chain, fam) {
  const list = last.tables.filter((t) => t.name === table && (!family || t.family === family));
  if (!list.length) return;
  const inOrder = list.flatMap((t) => t.chains.map((c) => ({ family: t.family, table, chain: c.name, rules: c.num_rules })));
  const fresh = !opened;
  opened = inOrder.find((c) => c.chain === chain && (!fam || c.family === fam)) || inOrder[0];
  ruleCounts = new Map();
  $('rulesbox').hidden = false;
  $('rulesh').textContent = `Table ${table}`;
  $('chains').replaceChildren(...inOrder.map((c) => el('button', {
    type: 'button', role: 'tab', 'aria-selected': String(c === opened), onclick: () => openRules(table, c.chain, c.family),
  }, `${list.length > 1 ? c.family + ' ' : ''}${c.chain} (${c.rules})`)));
  if (fresh) { $('rulesbox').scrollIntoView({ block: 'nearest' }); $('rulesh').focus({ preventScroll: true }); }
  await loadRules();
}

async function loadRules() {
  clearTimeout(ruleTimer);
  const at = opened;
  if (!at) return;
  try {
    const c = await get('api/rules?' + new URLSearchParams({ family: at.family, table: at.table, chain: at.chain }));
    if (at !== opened) return;
    const now = performance.now(), dt = ruleCounts.time ? (now - ruleCounts.time) / 1000 : 0, counts = new Map();
    counts.time = now;
    const row = (key, num, r, text) => {
      counts.set(key, r.packets);
      const rate = dt && ruleCounts.has(key) ? Math.max(0, r.packets - ruleCounts.get(key)) / dt : 0;
      return el('tr', { 'data-rule': num, class: rate > 0 ? 'lit' : '' }, el('td', { class: 'n' }, num), el('td', { class: 'n' }, short(r.packets)), el('td', { class: 'n' }, short(rate)),
        el('td', { class: 'n' }, short(r.bytes, 'B')), el('td', { class: 'm' }, text));
    };
    const rows = (c.rules || []).map((r, i) => row(i + 1 + r.text, String(i + 1), r, r.text));
    if (c.policy) rows.push(row('policy', '', c, `policy ${c.policy}`));
    $('rules').tBodies[0].replaceChildren(...rows);
    $('rulesmore').textContent = c.num_rules > rows.length ? `${c.num_rules - (c.rules || []).length} more rules are not shown.` : '';
    ruleCounts = counts;
  } catch (e) { $('rulesmore').textContent = e.message; }
  ruleTimer = setTimeout(loadRules, 1000);
}

$('rulesclose').onclick = () => { opened = null; clearTimeout(ruleTimer); $('rulesbox').hidden = true; $('flow').querySelector('.chip')?.focus(); };
$('edit').onsubmit = async (e) => {
  e.preventDefault();
  try {
    const r = await post('api/iptables', { command: $('command').value });
    $('editout').textContent = (r.output || '').trim() || (r.status === 0 ? 'done' : 'exit status ' + r.status);
  } catch (x) { $('editout').textContent = x.message; }
};

// --- traces

$('trace').onsubmit = async (e) => {
  e.preventDefault();
  const packets = $('packet').value.split('\n').map((l) => l.trim()).filter(Boolean);
  if (!packets.length) return say('Write a packet first: tcp 10.0.1.2:4000 > 203.0.113.9:80 S');
  try { showTraces((await post('api/trace', { in: $('in').value, packets })).traces); } catch (x) { say(x.message); }
};
$('live').onclick = async () => {
  say('Waiting for a packet…');
  $('live').disabled = true;
  try {
    const r = await get('api/live?' + new URLSearchParams({ match: $('match').value, family }));
    r.traces.length ? showTraces(r.traces) : say('No such packet came within 30 seconds.');
  } catch (x) { say(x.message); } finally { $('live').disabled = false; }
};
$('clear').onclick = () => { flow.light(null); $('traceout').replaceChildren(); $('clear').hidden = true; };

function say(text) { $('traceout').replaceChildren(el('p', { class: 'bad' }, text)); }

// words tells one step as text.
export function words(s) {
  const rule = s.rule ? s.rule.text + (s.rule.file ? `  (${s.rule.file}:${s.rule.line})` : '') : '';
  switch (s.kind) {
    case 'hook': return s.hook;
    case 'table': return `${s.table} ${s.chain || s.hook}`;
    case 'rule': return (s.matched ? '✓ ' : '✗ ') + `${s.rule?.num ?? ''} ${rule}` + (s.matched && s.result ? ` → ${s.result}` : '');
    case 'policy': return `policy of ${s.chain}: ${s.result}`;
    case 'return': return `back from ${s.chain}`;
    case 'conntrack': return `conntrack: ${s.conn || s.connection ? `${s.connection.state} ${s.connection.original || ''}` : s.text || ''}`;
    case 'route': return `route: ${s.route ? `${s.route.type} ${s.route.dev ? 'dev ' + s.route.dev : ''} ${s.route.via ? 'via ' + s.route.via : ''} ${s.route.refused || ''}` : ''} ${s.text || ''}`;
    case 'change': return `${s.field}: ${s.before} → ${s.after}`;
    default: return [s.kind, s.result, s.text].filter(Boolean).join(' ');
  }
}

function showTraces(traces) {
  $('clear').hidden = false;
  const out = [];
  for (const t of traces) {
    out.push(el('p', { class: 'packet' }, `${t.in ? t.in + ': ' : ''}${t.packet}`));
    out.push(el('ol', {}, ...t.steps.map((s) => el('li', {
      class: `${s.kind === 'hook' ? 'head' : ''} ${s.kind === 'rule' ? (s.matched ? 'matched' : 'miss') : ''}`, style: s.depth ? `margin-left:${s.depth}em` : null,
    }, el('span', { class: 'mono' }, words(s)))),
    el('li', { class: 'end' }, `${t.verdict}${t.reason ? ': ' + t.reason : ''}${(t.out || []).map((o) => ` ${o.interface}: ${o.packet}`).join(';')}`)));
  }
  $('traceout').replaceChildren(...out);
  flow.light(traces[0]);
}

// --- connections

let sort = { by: 'bytes', desc: true }, connTimer = 0;
const visible = new Set();

async function connections() {
  clearTimeout(connTimer);
  if (visible.has('conns') && !document.hidden) {
    try {
      const r = await get('api/connections?' + new URLSearchParams({ q: $('connq').value, sort: sort.by, desc: sort.desc, limit: 100 }));
      $('conncount').textContent = r.matched === r.total ? `${short(r.total)}` : `${short(r.matched)} of ${short(r.total)}`;
      $('conns').tBodies[0].replaceChildren(...r.rows.map((c) => el('tr', {}, el('td', {}, c.proto), el('td', {}, c.state), el('td', { class: 'm' }, c.src), el('td', { class: 'm' }, c.dst),
        el('td', { class: 'm' }, c.nat), el('td', { class: 'n' }, c.counted ? short(c.packets) : '–'), el('td', { class: 'n' }, c.counted ? short(c.bytes, 'B') : '–'), el('td', { class: 'n' }, c.timeout + ' s'), el('td', { class: 'n' }, c.mark ? '0x' + c.mark.toString(16) : ''))));
    } catch (x) { $('conncount').textContent = x.message; }
  }
  connTimer = setTimeout(connections, 2000);
}
$('connq').oninput = () => { clearTimeout(connTimer); connTimer = setTimeout(connections, 250); };
for (const b of document.querySelectorAll('[data-sort]')) {
  b.onclick = () => {
    sort = { by: b.dataset.sort, desc: sort.by === b.dataset.sort ? !sort.desc : ['packets', 'bytes', 'timeout', 'mark'].includes(b.dataset.sort) };
    for (const th of document.querySelectorAll('#conns th')) th.removeAttribute('aria-sort');
    b.parentElement.setAttribute('aria-sort', sort.desc ? 'descending' : 'ascending');
    connections();
  };
}

// --- graphs

function plot(title, series, unit) {
  const max = Math.max(1e-9, ...series.flatMap((s) => s.values));
  const n = Math.max(2, ...series.map((s) => s.values.length));
  const ns = 'http://www.w3.org/2000/svg', svg = document.createElementNS(ns, 'svg');
  svg.setAttribute('viewBox', '0 0 100 40');
  svg.setAttribute('preserveAspectRatio', 'none');
  svg.setAttribute('role', 'img');
  svg.setAttribute('aria-label', `${title}: ` + series.map((s) => `${s.name} ${short(s.values.at(-1) || 0, unit)} now, ${short(Math.max(0, ...s.values), unit)} at most`).join('; '));
  for (const s of series) {
    const p = document.createElementNS(ns, 'path');
    p.setAttribute('class', s.style);
    p.setAttribute('d', s.values.map((v, i) => `${i ? 'L' : 'M'}${(100 * (n - s.values.length + i)) / (n - 1)} ${38 - (36 * v) / max}`).join(''));
    svg.append(p);
  }
  return el('figure', {}, el('figcaption', {}, el('span', {}, title), el('span', { class: 'hint' }, ...series.map((s) => el('span', { class: s.style }, ` ${s.name} ${short(s.values.at(-1) || 0, unit)} `)), ` max ${short(max < 1e-6 ? 0 : max, unit)}`)), svg);
}

async function graphs() {
  try {
    const h = await get('api/history');
    const rate = (values, scale = 1) => values.slice(1).map((v, i) => Math.max(0, (v - values[i]) * scale) / Math.max(0.001, h.times[i + 1] - h.times[i]));
    $('graphs').replaceChildren(
      ...Object.entries(h.interfaces).map(([name, i]) => plot(name, [{ name: 'in', style: 'rx', values: rate(i.rx_bytes, 8) }, { name: 'out', style: 'tx', values: rate(i.tx_bytes, 8) }], 'bit/s')),
      plot('drops', [{ name: 'packets', style: 'dr', values: rate(h.drops) }], '/s'));
  } catch (x) { $('graphs').textContent = x.message; }
  setTimeout(graphs, 5000);
}

new IntersectionObserver((entries) => {
  for (const e of entries) e.isIntersecting ? visible.add(e.target.id) : visible.delete(e.target.id);
}, { rootMargin: '200px' }).observe($('conns'));

connect();
connections();
graphs();
