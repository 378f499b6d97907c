package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"sluice/conntrack"
	"sluice/internal/iptables"
	"sluice/internal/proxy"
	"sluice/internal/resolver"
	"sluice/internal/sysctl"
	"sluice/nat"
	"sluice/netstack"
	"sluice/netstack/services"
	"sluice/packet"
	"sluice/packet/frag"
	"sluice/tables"
	"sluice/tables/ipset"
	"sluice/tables/synproxy"
)

// Options is what a Router needs beside its configuration.
type Options struct {
	Log     *slog.Logger // nil: nothing is logged
	Version string       // shown by Status
	Ready   func()       // called by Run once every interface is up
	// ResolvConf is where [dns] finds the host's resolvers; "": /etc/resolv.conf
	ResolvConf string
	// Clock is the monotonic clock, ns since the router was made; nil: the
	// machine's. It may be called from any goroutine.
	Clock func() int64
	// Open opens an interface, with the number that packets name it by. With it a
	// program brings links of its own. nil, or no link and no error: as the
	// interface's type says.
	Open func(c *InterfaceConfig, index int) (netstack.Link, error)
}

// Router is one router: its interfaces, rules, connections and workers.
type Router struct {
	log     *slog.Logger
	opt     Options
	pid     int
	started time.Time

	sysctl    *sysctl.Set
	knobs     knobs
	ct        *conntrack.Table
	nat       *nat.NAT
	sets      *ipset.Sets
	engines   [2]*tables.Engine // IPv4, IPv6
	iptables  iptables.Engines
	envs      [2]*tables.Env
	synproxy  *synproxy.Proxy
	fib       *netstack.FIB
	lo        *packet.Iface
	frags     *frag.Reassembler
	local     *netstack.Local
	rings     *netstack.LocalRings
	services  *services.Manager
	limit     *icmpLimiter
	redirects *redirectLimiter
	proxies   *proxy.Manager
	names     names // guarded by mu, but for the pointers below
	logs      *logs
	workers   []*worker
	busyPoll  time.Duration
	turns     turns
	light     bool // workers may sleep behind the scheduler's back

	watchMu sync.Mutex // serialises changes of watches
	watches atomic.Pointer[[]*Watch]

	resolver    atomic.Pointer[resolver.Resolver] // of [dns]; nil: none
	strict      atomic.Pointer[resolver.Resolver] // the same, while names are checked
	denials     atomic.Pointer[counting]          // nil: not counted
	uplinkNames atomic.Pointer[[]string]

	closed    atomic.Bool
	forgetful atomic.Bool // workers remember no walks
	replaying atomic.Bool
	replayed  atomic.Int64 // the clock of a replay, ns
	recorded  atomic.Int64 // when the first packet of a replay was recorded, Unix time in ns; else 0

	queueMu sync.Mutex // serialises changes of the next two
	queues  atomic.Pointer[queues]
	nflogs  atomic.Pointer[[]*nflogListener]

	mu        sync.Mutex // guards what follows; no packet takes it
	cfg       *Config
	links     []*link
	nextIndex int
	reloads   int
	early     map[string]bool // tunables that apply has set before the interfaces
	fullLimit *rate.Limiter
	fullQuiet atomic.Int64              // before that, ns on the clock, fullLimit allows nothing
	lostDrops [packet.MaxReasons]uint64 // of workers' ports that are gone

	lost     chan *link    // devices that went away
	stopping chan struct{} // closed when Run ends
	wg       sync.WaitGroup
}

// knobs are the tunables that the router's own code reads.
type knobs struct {
	errorsUseInbound *sysctl.Var
	echoIgnore       [2]*sysctl.Var // by family
	conntrackMax     *sysctl.Var
	ttl4, ttl6       *sysctl.Var
}

// link is an interface as the router holds it.
type link struct {
	cfg   InterfaceConfig
	link  netstack.Link
	iface *packet.Iface
	gone  bool
}

// New makes a router from a configuration: devices are opened, rules loaded,
// and nothing is moving yet. On an error nothing is left behind.
func New(cfg *Config, opt Options) (*Router, error) {
	cfg = cfg.Complete()
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	s := sysctl.NewSet()
	r := &Router{
		log: opt.Log, opt: opt, pid: os.Getpid(), started: time.Now(),
		sysctl: s, cfg: &Config{}, nextIndex: 2, early: map[string]bool{},
		lost: make(chan *link, 64), stopping: make(chan struct{}),
		busyPoll: cfg.Router.BusyPoll, fullLimit: rate.NewLimiter(rate.Every(500*time.Millisecond), 10),
	}
	r.forgetful.Store(cfg.Router.Forgetful)
	r.fib = netstack.NewFIB(s)
	r.lo = r.fib.Loopback()
	r.ct = conntrack.New(s, conntrack.Options{Clock: r.clock, Log: r.logInvalid, Full: r.logFull})
	r.nat = nat.New(r.ct, s)
	r.ct.OnBroadcast(r.broadcastMask)
	r.sets = ipset.New(r.clock)
	r.frags = frag.New(s)
	r.limit = newICMPLimiter(s)
	r.redirects = newRedirectLimiter()
	r.knobs = newKnobs(s)
	n := cfg.Router.Workers
	if n == 0 {
		n = runtime.NumCPU()
	}
	r.synproxy = synproxy.New(r.ct, s, n)
	for f, fam := range families {
		r.envs[f] = &tables.Env{CT: r.ct, NAT: r.nat, Sysctl: s, Routes: routes{r}, Sockets: sockets{r}, Synproxy: r.synproxy, Sets: r.sets, SetGeneration: r.sets.Generation(), Wall: r.timeOfDay, DoWorkers: func(run func(*tables.Context)) {
			r.eachWorker(func(w *worker) {
				w.spread()
				run(&w.ctx[f])
			})
		}}
		r.engines[f] = tables.NewEngine(fam, r.envs[f])
	}
	r.iptables = iptables.New(r.engines[0], r.engines[1])
	r.logs = newLogs(opt.Log)

	r.rings = netstack.NewLocalRings(n, 0, func(i int) {
		if !r.closed.Load() { // the local stack's last words
			r.workers[i].kick()
		}
	})
	var err error
	if r.local, err = netstack.NewLocal(r.localOptions(n)); err != nil {
		r.Close()
		return nil, err
	}
	r.knobs.ttl4.OnChange(func(int64) { r.setTTL() })
	r.knobs.ttl6.OnChange(func(int64) { r.setTTL() })
	r.services = services.NewManager(r.local, statusSource{r}, opt.Log)
	for i := range n {
		w, err := newWorker(r, i)
		if err != nil {
			r.Close()
			return nil, fmt.Errorf("worker %d: %w", i, err)
		}
		r.workers = append(r.workers, w)
	}
	if err := r.apply(cfg); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// clock is the router's time: monotonic nanoseconds since it started, or, of a
// router of capture files, since their first packet.
func (r *Router) clock() int64 {
	if r.replaying.Load() {
		return r.replayed.Load()
	}
	if r.opt.Clock != nil {
		return r.opt.Clock()
	}
	return int64(time.Since(r.started))
}

// Run moves packets until ctx ends; meanwhile GOMAXPROCS is higher by the number
// of workers. A router of capture files alone ends by itself, when all are read.
func (r *Router) Run(ctx context.Context) error {
	if r.offline() {
		return r.replay(ctx)
	}
	var give func()
	r.light, give = takeProcessors(len(r.workers))
	defer give()
	for _, w := range r.workers {
		w.started.Store(true)
		r.wg.Add(1)
		go func() {
			defer r.wg.Done()
			w.loop()
		}()
	}
	go r.housekeep(ctx)
	if r.opt.Ready != nil {
		r.opt.Ready()
	}
	<-ctx.Done()
	for _, w := range r.workers {
		w.do(func(w *worker) { w.stop = true })
	}
	r.wg.Wait()
	return nil
}

// housekeep does what no packet waits for: expiry, and devices that went away.
func (r *Router) housekeep(ctx context.Context) {
	ticks := time.NewTicker(100 * time.Millisecond)
	defer ticks.Stop()
	for tick := 0; ; {
		select {
		case <-ctx.Done():
			return
		case l := <-r.lost:
			r.removeGone(l)
		case <-ticks.C:
			now := r.clock()
			r.ct.Housekeep(now)
			r.expireFragments(now)
			if tick++; tick%10 == 0 {
				r.sets.Expire()
			}
		}
	}
}

// linkGone is told by a worker that a device went away.
func (r *Router) linkGone(gone netstack.Link) {
	go func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, l := range r.links {
			if l.link == gone && !l.gone {
				l.gone = true
				select {
				case r.lost <- l:
				default:
				}
			}
		}
	}()
}

// removeGone takes an interface whose device went away out of routing; its
// place in the configuration stays, and a reload opens it again.
func (r *Router) removeGone(l *link) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log.Warn("the device went away; `sluice reload` opens it again", "interface", l.cfg.Name)
	r.detach(l)
	if err := r.fib.Update(func(tx *netstack.Tx) error { return tx.RemoveIface(l.iface.Index) }); err != nil {
		r.log.Error("routes of a device that went away", "interface", l.cfg.Name, "err", err)
	}
	r.setLocalAddresses()
	r.nat.InterfaceGone(l.iface.Index)
	l.link.Close()
}

// eachWorker runs f for each worker, one after the other, between their bursts.
func (r *Router) eachWorker(f func(*worker)) {
	for _, w := range r.workers {
		w.do(f)
	}
}

// setTTL tells the local stack what the tunables say.
func (r *Router) setTTL() {
	if err := r.local.SetTTL(uint8(r.knobs.ttl4.Load()), uint8(r.knobs.ttl6.Load())); err != nil {
		r.log.Error("default TTL", "err", err)
	}
}

// Engine is the rules of a family (packet.IPv4 or packet.IPv6).
func (r *Router) Engine(family uint8) *tables.Engine { return r.engines[family>>1&1] }

// Conntrack is the flow table.
func (r *Router) Conntrack() *conntrack.Table { return r.ct }

// Sets are the router's IP sets.
func (r *Router) Sets() *ipset.Sets { return r.sets }

// Sysctl is the router's tunables.
func (r *Router) Sysctl() *sysctl.Set { return r.sysctl }

// FIB is the routing tables.
func (r *Router) FIB() *netstack.FIB { return r.fib }

// Local is the stack that owns the router's addresses.
func (r *Router) Local() *netstack.Local { return r.local }

// Close ends a router that does not run (any more): its devices go, and what
// the kernel had to them.
func (r *Router) Close() error {
	r.watchMu.Lock()
	var watches []*Watch
	if p := r.watches.Load(); p != nil {
		watches = *p
	}
	r.watchMu.Unlock()
	for _, v := range watches {
		v.Close()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed.Load() {
		return nil
	}
	var errs []error
	if r.proxies != nil {
		errs = append(errs, r.proxies.Close())
	}
	errs = append(errs, r.applyDNS(&Config{}))
	if r.services != nil {
		errs = append(errs, r.services.Close())
	}
	if r.local != nil {
		errs = append(errs, r.local.Close())
	}
	for _, l := range r.links {
		if !l.gone {
			errs = append(errs, l.link.Close())
		}
	}
	r.links = nil
	r.closed.Store(true)
	for _, w := range r.workers {
		w.close()
	}
	r.logs.close()
	return errors.Join(errs...)
}
