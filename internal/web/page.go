package web

import (
	"bytes"
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"sluice/conntrack"
	"sluice/internal/iptables"
	"sluice/internal/play"
	"sluice/packet"
	"sluice/router"
	"sluice/tables"
)

//go:embed page
var files embed.FS

const (
	maxChainRules = 2000             // that the page shows of a chain
	livePatience  = 30 * time.Second // for a packet that matches
	maxBody       = 64 << 10
)

func (s *Server) pageHandlers() {
	page, err := fs.Sub(files, "page")
	if err != nil {
		panic(err) // the folder is embedded
	}
	static := http.FileServerFS(page)
	for _, name := range []string{"{$}", "page.css", "page.js", "flow.js", "plot.js", "icon.svg"} {
		s.Handle("GET /"+name, Read, static)
	}
	s.Handle("GET /api/stream", Read, http.HandlerFunc(s.stream))
	s.Handle("GET /api/rules", Read, http.HandlerFunc(s.rules))
	s.Handle("GET /api/connections", Read, http.HandlerFunc(s.connections))
	s.Handle("GET /api/history", Read, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w, s.history.all()) }))
	s.Handle("POST /api/trace", Read, http.HandlerFunc(s.trace)) // what if: nothing is sent or changed
	s.Handle("GET /api/live", Read, http.HandlerFunc(s.live))
	s.Handle("POST /api/iptables", Write, http.HandlerFunc(s.iptables))
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// overview is what the stream sends each second.
type overview struct {
	*router.Status
	Writable bool `json:"writable"` // this client may change something
}

// stream sends the counters once a second. A client that stops reading is cut off.
func (s *Server) stream(w http.ResponseWriter, r *http.Request) {
	c := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	s.streams.Add(1)
	defer s.streams.Add(-1)
	writable := s.MayWrite(r)
	for {
		text, err := json.Marshal(overview{s.router.Overview(), writable})
		if err != nil {
			s.log.Error("the page's counters", "err", err)
			return
		}
		if c.SetWriteDeadline(time.Now().Add(s.patient)) != nil || c.SetReadDeadline(time.Time{}) != nil {
			return
		}
		if _, err := fmt.Fprintf(w, "data: %s\n\n", text); err != nil || c.Flush() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		case <-s.ctx.Done():
			return
		}
	}
}

func (s *Server) rules(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	c, ok := s.router.Chain(q.Get("family"), q.Get("table"), q.Get("chain"), maxChainRules)
	if !ok {
		http.Error(w, fmt.Sprintf("there is no chain %s in table %s of %s", q.Get("chain"), q.Get("table"), q.Get("family")), http.StatusNotFound)
		return
	}
	answer(w, c)
}

// connection is a row of the page's table.
type connection struct {
	Proto   string `json:"proto"`
	State   string `json:"state"`
	Src     string `json:"src"`
	Dst     string `json:"dst"`
	NAT     string `json:"nat"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
	Counted bool   `json:"counted"` // nf_conntrack_acct is on
	Timeout uint32 `json:"timeout"` // seconds
	Mark    uint32 `json:"mark"`
}

func row(s *conntrack.Snapshot) connection {
	addr := func(a [16]byte) string { return packet.Addr(s.Orig.Family, a).String() }
	end := func(a [16]byte, port uint16) string {
		if s.Orig.Proto != packet.ProtoTCP && s.Orig.Proto != packet.ProtoUDP && s.Orig.Proto != packet.ProtoSCTP {
			return addr(a)
		}
		if s.Orig.Family == packet.IPv6 {
			return "[" + addr(a) + "]:" + strconv.Itoa(int(port))
		}
		return addr(a) + ":" + strconv.Itoa(int(port))
	}
	c := connection{
		Proto: cmp.Or(tables.ProtocolName(s.Orig.Proto), strconv.Itoa(int(s.Orig.Proto))), State: s.Name(),
		Src: end(s.Orig.Src, s.Orig.SrcPort), Dst: end(s.Orig.Dst, s.Orig.DstPort),
		Packets: s.Packets[0] + s.Packets[1], Bytes: s.Bytes[0] + s.Bytes[1], Counted: s.Counted, Timeout: s.Timeout, Mark: s.Mark,
	}
	if c.State == "" {
		c.State = map[bool]string{false: "unreplied", true: "replied"}[s.Status&conntrack.SeenReply != 0]
		if s.Status&conntrack.Assured != 0 {
			c.State = "assured"
		}
	}
	var nat []string
	if s.Status&conntrack.SrcNAT != 0 {
		nat = append(nat, "source → "+end(s.Reply.Dst, s.Reply.DstPort))
	}
	if s.Status&conntrack.DstNAT != 0 {
		nat = append(nat, "destination → "+end(s.Reply.Src, s.Reply.SrcPort))
	}
	c.NAT = strings.Join(nat, ", ")
	return c
}

// matches reports whether every word of a search is in the row.
func (c *connection) matches(words []string) bool {
	text := fmt.Sprintf("%s %s src=%s dst=%s %s mark=%d mark=0x%[6]x", c.Proto, strings.ToLower(c.State), c.Src, c.Dst, c.NAT, c.Mark)
	return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(text, w) })
}

var orders = map[string]func(a, b *connection) int{
	"proto":   func(a, b *connection) int { return cmp.Compare(a.Proto, b.Proto) },
	"state":   func(a, b *connection) int { return cmp.Compare(a.State, b.State) },
	"src":     func(a, b *connection) int { return cmp.Compare(a.Src, b.Src) },
	"dst":     func(a, b *connection) int { return cmp.Compare(a.Dst, b.Dst) },
	"packets": func(a, b *connection) int { return cmp.Compare(a.Packets, b.Packets) },
	"bytes":   func(a, b *connection) int { return cmp.Compare(a.Bytes, b.Bytes) },
	"timeout": func(a, b *connection) int { return cmp.Compare(a.Timeout, b.Timeout) },
	"mark":    func(a, b *connection) int { return cmp.Compare(a.Mark, b.Mark) },
}

// connections answers with the first rows in an order, of those that a search
// finds. It never holds more rows than twice those that it answers with.
func (s *Server) connections(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	order, ok := orders[cmp.Or(q.Get("sort"), "bytes")]
	limit, err := strconv.Atoi(cmp.Or(q.Get("limit"), "100"))
	if !ok || err != nil || limit < 1 || limit > 1000 {
		http.Error(w, "sort is a column's name, limit 1 to 1000", http.StatusBadRequest)
		return
	}
	desc := q.Get("desc") == "true"
	less := func(a, b connection) int {
		o := order(&a, &b)
		if desc {
			o = -o
		}
		return cmp.Or(o, cmp.Compare(a.Src, b.Src), cmp.Compare(a.Dst, b.Dst), cmp.Compare(a.Proto, b.Proto))
	}
	words := strings.Fields(strings.ToLower(q.Get("q")))
	out := struct {
		Total   int          `json:"total"`
		Matched int          `json:"matched"`
		Rows    []connection `json:"rows"`
	}{Rows: []connection{}}
	keep := func() {
		slices.SortFunc(out.Rows, less)
		out.Rows = out.Rows[:min(limit, len(out.Rows))]
	}
	s.router.Conntrack().Each(func(c *conntrack.Snapshot) bool {
		out.Total++
		if x := row(c); x.matches(words) {
			out.Matched++
			if out.Rows = append(out.Rows, x); len(out.Rows) >= 2*limit {
				keep()
			}
		}
		return true
	})
	keep()
	answer(w, out)
}

// told is a trace with its words, those that sluice trace prints.
type told struct {
	*router.Trace
	Lines []play.Line `json:"lines"`
}

type traces struct {
	Traces []told `json:"traces"`
}

func (x *traces) add(ts ...*router.Trace) {
	for _, t := range ts {
		x.Traces = append(x.Traces, told{t, play.Lines(t, false)})
	}
}

// body reads a request's JSON into v, and tells a client what is wrong with it.
func body(w http.ResponseWriter, r *http.Request, v any) bool {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		http.Error(w, "the request: "+err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}

// trace tries packets out on a copy of the router: nothing is sent.
func (s *Server) trace(w http.ResponseWriter, r *http.Request) {
	var req struct {
		In      string
		Packets []string
	}
	if !body(w, r, &req) {
		return
	}
	select {
	case s.sims <- struct{}{}:
		defer func() { <-s.sims }()
	case <-r.Context().Done():
		return
	}
	sim, err := s.router.Sim()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer sim.Close()
	p := play.New(sim)
	p.In = req.In
	out := traces{}
	for i, item := range req.Packets {
		ts, err := p.Play(item)
		if err != nil {
			http.Error(w, fmt.Sprintf("packet %d: %v", i+1, err), http.StatusBadRequest)
			return
		}
		out.add(ts...)
	}
	answer(w, out)
}

// live waits for a packet of the real traffic.
func (s *Server) live(w http.ResponseWriter, r *http.Request) {
	match, _, err := iptables.Split(r.URL.Query().Get("match"))
	if err != nil {
		http.Error(w, "match: "+err.Error(), http.StatusBadRequest)
		return
	}
	v, err := s.router.Watch(router.WatchOptions{Match: match, Queue: 16})
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	defer v.Close()
	ctx, cancel := context.WithTimeout(r.Context(), livePatience)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	out := traces{Traces: []told{}}
	family := r.URL.Query().Get("family")
	for t := v.Next(ctx.Done()); t != nil; t = v.Next(ctx.Done()) {
		if family == "" || family == "ipv"+strconv.Itoa(int(t.Family)) {
			out.add(t)
			break
		}
	}
	answer(w, out)
}

// iptables runs one command of the iptables family.
func (s *Server) iptables(w http.ResponseWriter, r *http.Request) {
	var req struct{ Command string }
	if !body(w, r, &req) {
		return
	}
	argv, _, err := iptables.Split(req.Command)
	if err == nil && (len(argv) == 0 || argv[0] != "iptables" && argv[0] != "ip6tables") {
		err = errors.New(`a command begins with iptables or ip6tables`)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var out bytes.Buffer
	status := iptables.Run(s.router.IPTables(), argv, strings.NewReader(""), &out, &out)
	s.log.Info("changed over HTTP", "command", req.Command, "status", status, "from", r.RemoteAddr)
	answer(w, struct {
		Status int    `json:"status"`
		Output string `json:"output"`
	}{status, out.String()})
}

// Of the history: a reading every ten seconds, for an hour.
const (
	historyStep = 10 * time.Second
	historyLen  = 360
)

// history keeps the counters of the last hour.
type history struct {
	mu       sync.Mutex
	readings []reading
}

type reading struct {
	at     float64 // uptime, seconds
	ifaces map[string][2]uint64
	drops  uint64
}

func (h *history) keep(ctx context.Context, r *router.Router) {
	tick := time.NewTicker(historyStep)
	defer tick.Stop()
	for {
		h.add(r.Overview())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (h *history) add(st *router.Status) {
	x := reading{at: st.Uptime, ifaces: map[string][2]uint64{}}
	for _, i := range st.Interfaces {
		x.ifaces[i.Name] = [2]uint64{i.RxBytes, i.TxBytes}
	}
	for _, d := range st.Drops {
		x.drops += d.Packets
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.readings = append(h.readings, x)
	if n := len(h.readings) - historyLen; n > 0 {
		h.readings = slices.Delete(h.readings, 0, n)
	}
}

type ifaceHistory struct {
	RxBytes []uint64 `json:"rx_bytes"`
	TxBytes []uint64 `json:"tx_bytes"`
}

// all is the history as the page reads it: lists of the same length.
func (h *history) all() any {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := struct {
		Times      []float64                `json:"times"` // uptime, seconds
		Drops      []uint64                 `json:"drops"`
		Interfaces map[string]*ifaceHistory `json:"interfaces"`
	}{Times: []float64{}, Drops: []uint64{}, Interfaces: map[string]*ifaceHistory{}}
	for _, x := range h.readings {
		for name := range x.ifaces {
			if out.Interfaces[name] == nil {
				out.Interfaces[name] = &ifaceHistory{}
			}
		}
	}
	for _, x := range h.readings {
		out.Times = append(out.Times, x.at)
		out.Drops = append(out.Drops, x.drops)
		for name, i := range out.Interfaces {
			i.RxBytes = append(i.RxBytes, x.ifaces[name][0])
			i.TxBytes = append(i.TxBytes, x.ifaces[name][1])
		}
	}
	return out
}
