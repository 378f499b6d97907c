package router

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"sluice/conntrack"
	"sluice/hooks"
	"sluice/netstack"
	"sluice/netstack/uplink"
	"sluice/packet"
	"sluice/tables"
)

const (
	batchSize   = 64        // frames a worker reads before it works on them, at most
	batchBytes  = 256 << 10 // and bytes, so that super-packets stay in the cache
	outputQueue = 256       // packets of the router's own that may wait in a worker
	maxRounds   = 16        // batches from one queue before the others have their turn
)

// worker is one goroutine locked to its thread. It owns queue i of every
// device and shares nothing writable with the others but the flow table.
// Everything here belongs to that goroutine unless its comment says otherwise.
type worker struct {
	r   *Router
	id  int
	now int64 // the burst's clock, ns since the router started

	ct        *conntrack.Worker
	bound     [hooks.NumHooks]bound
	stages    [2][hooks.NumHooks][]hooks.Stage    // by family, for the rules in force
	passed    [2][hooks.NumHooks][]*hooks.Counter // what stages refers to
	passedIDs [2][hooks.NumHooks][][]uint32       // the same counters, by stage
	prog      [2]*tables.Program
	ctx       [2]tables.Context
	fib       *netstack.Snapshot // of this burst

	confGen    uint64 // of this burst
	flowRoutes []flowRoute
	remember   bool // in this burst
	mem        memory
	learn      lesson // from the packet at hand
	probes     [batchSize]conntrack.Probe
	sink       uint64 // keeps what touches memory from being optimised away

	ports   []*port // by interface index; nil: none
	uplinks []*port // those of ports that are uplinks
	reads   []*reader
	files   []*reader // capture files: nothing to wait on
	frames  [batchSize]packet.Packet
	batch   []*packet.Packet // pointers to frames
	pool    []*packet.Packet // free packets for what the router makes
	outq    []*packet.Packet // made by the router, waiting to pass OUTPUT
	logBuf  []byte
	options packet.IPOptions // of the packet at hand
	tees    []*packet.Packet // copies that TEE made, waiting to leave
	teeing  bool             // … and leaving
	past    bool             // the packet goes past the rest of the nat stage, see nat.Past
	outDev  *packet.Iface    // where the packet in OUTPUT was routed anew; nil: it was not

	epoll, wake int
	commands    atomic.Pointer[command]
	started     atomic.Bool   // it has a goroutine
	exited      chan struct{} // closed when the goroutine has ended
	tid         atomic.Int32  // its thread; 0: none
	idle        sync.Mutex    // taken for work on a worker that has no goroutine
	stop        bool

	watching    *[]*Watch    // of this burst; nil: nobody looks
	rec         *recorder    // of the packet at hand; nil: it is not recorded
	traced      func(*Trace) // of a Sim: gets every trace
	traceLog    bool
	tracesBegun uint64
	chainNames  [2]tables.Chains

	// Counters: plain, read through do.
	drops       [packet.MaxReasons]uint64
	forwarded   uint64
	delivered   uint64
	icmpSent    uint64
	icmpLimited uint64
	settled     uint64 // delivered, when a replay last waited for the local stack
	batches     uint64
	waited      int64 // for packets, ns
	rested      int64 // ns that the worker has just slept
	packets     uint64
}

// port is an interface as one worker uses it, with the counters of what that worker did.
type port struct {
	link  netstack.Link
	out   []netstack.Queue  // to write to; see way
	hold  []netstack.Holder // the same, if they hold packets until Flush
	iface *packet.Iface
	gone  bool

	rxPackets, rxBytes, txPackets, txBytes, txErrors uint64
}

// reader is a queue that a worker reads.
type reader struct {
	*port
	queue  netstack.Queue
	prompt netstack.Prompter // queue, if it is one; else nil
	fd     int
	batch  int // frames to read before working on them
}

func newWorker(r *Router, id int) (*worker, error) {
	w := &worker{r: r, id: id, ct: r.ct.NewWorker(), exited: make(chan struct{})}
	for h := range hooks.NumHooks {
		w.bound[h] = bindAll(w, h)
	}
	for f := range w.ctx {
		w.ctx[f] = tables.Context{Worker: id, CT: w.ct, NAT: r.nat, Env: r.envs[f], Output: w.queueOutput, Alloc: w.alloc, Free: w.free, ICMPError: w.icmpError, Log: w.logPacket, LogLine: r.logs.add, NFLog: w.nflog}
		c := &w.ctx[f]
		c.Queue = func(num uint16, bypass bool, p *packet.Packet) tables.Result { return w.queuePacket(c, num, bypass, p) }
		c.Tee = func(gw [16]byte, dev string, p *packet.Packet) { w.tee(c, gw, dev, p) }
	}
	bufs := newBuffers(batchSize)
	for i := range w.frames {
		p := &w.frames[i]
		p.Buf = bufs[i]
		p.Reset()
		w.batch = append(w.batch, p)
	}
	w.learn.trail.Counters = make([]uint32, 0, maxTrail)
	w.learn.scratch = packet.New()
	w.load()
	var err error
	if w.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	if w.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(w.epoll)
		return nil, err
	}
	return w, w.watch(w.wake)
}

func (w *worker) watch(fd int) error {
	return unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

// loop is the worker's life.
func (w *worker) loop() {
	runtime.LockOSThread() // the thread ends with the goroutine
	w.tid.Store(int32(unix.Gettid()))
	defer w.tid.Store(0)
	defer close(w.exited)
	events := make([]unix.EpollEvent, 64)
	more := false // a queue may have something to read, whatever epoll says
	for !w.stop {
		n, err := w.wait(events, !more && len(w.files) == 0)
		if err != nil && err != unix.EINTR {
			w.r.log.Error("epoll", "worker", w.id, "err", err)
			time.Sleep(time.Millisecond) // a broken epoll must not eat the machine
		}
		w.begin(w.r.clock())
		for _, e := range events[:max(n, 0)] {
			if int(e.Fd) == w.wake {
				var b [8]byte
				unix.Read(w.wake, b[:])
				continue
			}
			w.drain(int(e.Fd))
		}
		w.drainLocal()
		more = w.prompt()
		if len(w.files) > 0 {
			w.readFiles()
		}
		w.end()
		w.runCommands()
	}
}

// begin opens a burst: its clock and its rulesets stay the same until end.
func (w *worker) begin(now int64) {
	w.now = now
	w.watching = w.r.watches.Load()
	w.remember = !w.r.forgetful.Load()
	w.ct.Begin(now)
	if w.r.replaying.Load() {
		w.ct.Rested(int64(time.Second)) // what it does takes none of this clock's time
	}
	w.loadRoutes()
	w.load()
}

func (w *worker) end() {
	w.ct.End()
	w.batches++
}

// load takes the rulesets that packets of this burst meet.
func (w *worker) load() {
	for f, e := range w.r.engines {
		if pr := e.Program(); pr != w.prog[f] {
			if w.prog[f] != nil {
				w.forget()
			}
			w.prog[f] = pr
			w.ctx[f].Prepare(pr)
			for h := range hooks.NumHooks {
				w.stages[f][h], w.passed[f][h] = w.bound[h].forRules(w, f, h, w.stages[f][h][:0], w.passed[f][h][:0])
				w.passedIDs[f][h] = w.bound[h].passedBy(w, f, h)
			}
		}
	}
}

// drain reads a queue until it is dry or the others should have their turn.
func (w *worker) drain(fd int) {
	for i := range w.reads {
		if w.reads[i].fd == fd {
			w.read(w.reads[i])
			return
		}
	}
}

// read takes what a queue has, until it is dry or the others should have their
// turn. After a quiet time the first batches are small, so that a lonely packet
// does not wait for the look whether there is another one; they grow with what comes.
func (w *worker) read(q *reader) {
	got := 0
	alone := q.batch == 1 && w.rested > lonely
	for range maxRounds {
		n, size := 0, 0
		var err error
		for n < q.batch && size < batchBytes && !q.gone {
			p := w.batch[n]
			p.Renew()
			if err = q.queue.Read(p); err == netstack.ErrFrame {
				w.countDrop(p)
				continue
			}
			if err != nil {
				break
			}
			size += p.Len()
			n++
		}
		if err == netstack.ErrGone {
			w.lose(q.port)
		}
		if n > 0 {
			w.burst(q.port, w.batch[:n])
		}
		if q.prompt == nil {
			w.prompt()
		}
		got += n
		if err != nil || q.gone {
			q.batch = max(1, min(got, batchSize))
			return
		}
		q.batch = min(2*q.batch, batchSize)
		if alone {
			return // epoll says as cheaply whether there is another one
		}
	}
}

// prompt reads the queues that have something to say because of what was
// written to them; false: none had.
func (w *worker) prompt() (any bool) {
	for i := 0; i < len(w.reads); i++ {
		if q := w.reads[i]; q.prompt != nil && !q.gone && q.prompt.Prompt() {
			w.read(q)
			any = true
		}
	}
	return any
}

// burst works on what was read at once.
func (w *worker) burst(d *port, ps []*packet.Packet) {
	bytes := 0
	for _, p := range ps {
		bytes += p.Len()
		p.In, p.Now, p.Worker = d.iface, w.now, uint16(w.id)
	}
	d.rxPackets += uint64(len(ps))
	d.rxBytes += uint64(bytes)
	if w.watching != nil {
		w.receiveWatched(ps)
	} else {
		w.receiveAll(ps)
	}
	w.packets += uint64(len(ps))
	w.flush()
}

func (w *worker) flush() {
	for _, d := range w.ports {
		if d == nil {
			continue
		}
		for _, q := range d.out {
			if d.gone {
				break
			}
			if err := q.Flush(); err == netstack.ErrGone {
				w.lose(d)
			}
		}
	}
}

// lose is hot removal: the device went away under us.
func (w *worker) lose(d *port) {
	if d.gone {
		return
	}
	d.gone = true
	w.unwatch(d.link)
	w.r.linkGone(d.link)
}

// plug gives the worker an interface: one queue to write to, and those to read.
func (w *worker) plug(l *link) {
	for len(w.ports) <= l.iface.Index {
		w.ports = append(w.ports, nil)
	}
	n := l.link.Queues()
	d := &port{link: l.link, iface: l.iface}
	if _, ok := l.link.(netstack.Steered); ok {
		for i := range n {
			d.out = append(d.out, l.link.Queue(i))
		}
	} else {
		d.out = append(d.out, l.link.Queue(w.id%n))
	}
	for _, q := range d.out {
		if h, ok := q.(netstack.Holder); ok {
			d.hold = append(d.hold, h)
			h.OnLoss(func(p *packet.Packet) {
				d.txPackets--
				d.txBytes -= uint64(p.Len())
				d.txErrors++
				w.countDrop(p)
			})
		}
	}
	w.ports[l.iface.Index] = d
	if _, ok := l.link.(*uplink.Link); ok {
		w.uplinks = append(w.uplinks, d)
	}
	for i := w.id; i < n; i += len(w.r.workers) {
		q := &reader{port: d, queue: l.link.Queue(i), batch: batchSize}
		q.prompt, _ = q.queue.(netstack.Prompter)
		q.fd = q.queue.FD()
		if q.fd < 0 {
			w.files = append(w.files, q)
			continue
		}
		w.reads = append(w.reads, q)
		if err := w.watch(q.fd); err != nil {
			w.r.log.Error("watching a queue", "interface", l.cfg.Name, "err", err)
		}
	}
}

func (w *worker) unplug(l *link) {
	w.unwatch(l.link)
	w.uplinks = slices.DeleteFunc(w.uplinks, func(d *port) bool { return d.link == l.link })
	if i := l.iface.Index; i < len(w.ports) && w.ports[i] != nil && w.ports[i].link == l.link {
		w.ports[i] = nil
	}
}

func (w *worker) unwatch(l netstack.Link) {
	w.reads = slices.DeleteFunc(w.reads, func(q *reader) bool {
		if q.link != l {
			return false
		}
		unix.EpollCtl(w.epoll, unix.EPOLL_CTL_DEL, q.fd, nil)
		return true
	})
	w.files = slices.DeleteFunc(w.files, func(q *reader) bool { return q.link == l })
}

// port is where packets for i leave; nil if there is no such device any more.
func (w *worker) port(i *packet.Iface) *port {
	if i == nil || i.Index >= len(w.ports) {
		return nil
	}
	d := w.ports[i.Index]
	if d == nil || d.gone {
		return nil
	}
	return d
}

// way is the queue that p leaves by. A device with several queues hands what
// answers p to the same one; so all of a connection's packets, both ways, go
// through the queues of the worker that saw its first. If each worker wrote to
// its own, two workers could push a flow to and fro between them for ever, and
// its packets would overtake each other.
func (w *worker) way(d *port, p *packet.Packet) int {
	n := len(d.out)
	if n == 1 {
		return 0
	}
	if p.Home != 0 {
		return int(p.Home-1) % n
	}
	if e := w.ct.Entry(p); e != nil {
		return int(e.Home) % n
	}
	return int(p.FlowHash()) % n
}

// kept says that p's bytes stay until the burst has been flushed.
func (w *worker) kept(p *packet.Packet) bool {
	return uintptr(unsafe.Pointer(p))-uintptr(unsafe.Pointer(&w.frames)) < unsafe.Sizeof(w.frames)
}

func (d *port) send(w *worker, p *packet.Packet) bool {
	n := p.Len()
	switch err := d.out[w.way(d, p)].Write(p); err {
	case nil:
		d.txPackets++
		d.txBytes += uint64(n)
		return true
	case netstack.ErrGone:
		w.lose(d)
		return drop(p, reasonLinkGone)
	case netstack.ErrRefused:
		d.txPackets++
		d.txBytes += uint64(n)
		return false
	}
	d.txErrors++
	return drop(p, reasonLinkWrite)
}

func (w *worker) countDrop(p *packet.Packet) {
	if p.Reason == 0 {
		p.Reason = reasonHookUnknown
	}
	w.drops[p.Reason]++
}

// alloc takes a packet for the router's own use from the pool.
func (w *worker) alloc() *packet.Packet {
	if n := len(w.pool); n > 0 {
		p := w.pool[n-1]
		w.pool = w.pool[:n-1]
		return p
	}
	return packet.New()
}

func (w *worker) free(p *packet.Packet) {
	if len(w.pool) < batchSize {
		p.Reset()
		w.pool = append(w.pool, p)
	}
}

// queueOutput takes a packet that the router made, parsed or not, to be sent
// through OUTPUT once the packet at hand has ended.
func (w *worker) queueOutput(p *packet.Packet) {
	if len(w.outq) >= outputQueue {
		w.drops[reasonLocalOutputFull]++
		w.free(p)
		return
	}
	w.outq = append(w.outq, p)
}

// settle sends what queueOutput and tee collected, and what that caused in turn.
func (w *worker) settle() {
	for i := 0; ; i++ {
		if len(w.tees) > 0 {
			w.sendTees()
		}
		if i == len(w.outq) {
			break
		}
		w.sendOwn(w.outq[i])
	}
	w.outq = w.outq[:0]
}

// sendOwn takes a packet that the router made to its end.
func (w *worker) sendOwn(p *packet.Packet) {
	if w.watching != nil {
		w.sendOwnWatched(p)
		return
	}
	p.Now, p.Worker = w.now, uint16(w.id)
	p.Flags |= packet.Local
	if !w.output(p) {
		w.countDrop(p)
	}
	w.ct.Release(p)
	w.free(p)
}

// drainLocal sends what the local stack wants out; false: it wants nothing.
func (w *worker) drainLocal() (any bool) {
	for range 4 * batchSize {
		p := w.alloc()
		if !w.r.rings.Get(w.id, p) {
			w.free(p)
			break
		}
		any = true
		w.outq = append(w.outq, p)
		w.settle()
	}
	w.flush()
	return any
}

// kick wakes the worker; any goroutine may call it.
func (w *worker) kick() {
	one := [8]byte{1}
	unix.Write(w.wake, one[:])
}

// command is a function to run on a worker between bursts.
type command struct {
	run  func(*worker)
	done chan struct{}
	next *command
}

// do runs f on the worker, between bursts, and waits for it. It is how other
// goroutines read a worker's plain counters and change its ports.
func (w *worker) do(f func(*worker)) {
	if !w.started.Load() {
		w.inline(f)
		return
	}
	c := &command{run: f, done: make(chan struct{})}
	for {
		c.next = w.commands.Load()
		if w.commands.CompareAndSwap(c.next, c) {
			break
		}
	}
	w.kick()
	select {
	case <-c.done:
	case <-w.exited:
		select {
		case <-c.done:
		default:
			w.inline(f)
		}
	}
}

// inline is do for a worker that has no goroutine: not yet, or no more.
func (w *worker) inline(f func(*worker)) {
	w.idle.Lock()
	defer w.idle.Unlock()
	f(w)
}

func (w *worker) runCommands() {
	if w.commands.Load() == nil {
		return
	}
	var first *command
	for c := w.commands.Swap(nil); c != nil; {
		c.next, first, c = first, c, c.next // oldest first
	}
	for c := first; c != nil; c = c.next {
		c.run(w)
		close(c.done)
	}
}

func (w *worker) close() {
	unix.Close(w.epoll)
	unix.Close(w.wake)
}

// Step takes what there is to read through worker i of a router that does not
// Run: the way to drive a router in memory. It returns when the worker's links
// are dry.
func (r *Router) Step(i int) {
	w := r.workers[i]
	w.do(func(w *worker) {
		for {
			before := w.packets
			w.begin(r.clock())
			for i := range w.reads {
				w.read(w.reads[i])
			}
			w.readFiles()
			w.drainLocal()
			w.prompt()
			w.end()
			if w.packets == before {
				return
			}
		}
	})
}
