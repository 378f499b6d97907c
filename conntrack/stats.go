package conntrack

// Counters of one worker, in the order `conntrack -S` prints them.
const (
	statFound = iota
	statInvalid
	statInsert
	statInsertFailed
	statDrop
	statEarlyDrop
	statError
	statSearchRestart
	statClashResolve
	statChainTooLong
	statExpectNew
	statExpectCreate
	statExpectDelete
	numStats
)

// Stats are one worker's counters under the names `conntrack -S` prints.
type Stats struct {
	Found, Invalid, Insert, InsertFailed, Drop, EarlyDrop, Error uint64
	SearchRestart, ClashResolve, ChainTooLong                    uint64
	ExpectNew, ExpectCreate, ExpectDelete                        uint64
}

func (w *Worker) stat(i int) { w.stats[i].Add(1) }

// Stats gives the counters of every worker. What goroutines that are no workers
// did is counted with the first.
func (t *Table) Stats() []Stats {
	var out []Stats
	ws := *t.workers.Load()
	for i, w := range ws {
		s := Stats{
			Found: w.stats[statFound].Load(), Invalid: w.stats[statInvalid].Load(),
			Insert: w.stats[statInsert].Load(), InsertFailed: w.stats[statInsertFailed].Load(),
			Drop: w.stats[statDrop].Load(), EarlyDrop: w.stats[statEarlyDrop].Load(),
			Error: w.stats[statError].Load(), SearchRestart: w.stats[statSearchRestart].Load(),
			ClashResolve: w.stats[statClashResolve].Load(), ChainTooLong: w.stats[statChainTooLong].Load(),
			ExpectNew: w.stats[statExpectNew].Load(), ExpectCreate: w.stats[statExpectCreate].Load(),
			ExpectDelete: w.stats[statExpectDelete].Load(),
		}
		if i == 1 {
			out[0].add(&s)
			continue
		}
		out = append(out, s)
	}
	return out
}

func (s *Stats) add(o *Stats) {
	for _, f := range []struct{ to, from *uint64 }{
		{&s.Found, &o.Found}, {&s.Invalid, &o.Invalid}, {&s.Insert, &o.Insert}, {&s.InsertFailed, &o.InsertFailed},
		{&s.Drop, &o.Drop}, {&s.EarlyDrop, &o.EarlyDrop}, {&s.Error, &o.Error}, {&s.SearchRestart, &o.SearchRestart},
		{&s.ClashResolve, &o.ClashResolve}, {&s.ChainTooLong, &o.ChainTooLong}, {&s.ExpectNew, &o.ExpectNew},
		{&s.ExpectCreate, &o.ExpectCreate}, {&s.ExpectDelete, &o.ExpectDelete},
	} {
		*f.to += *f.from
	}
}

// Add sums counters.
func (s Stats) Add(o Stats) Stats { s.add(&o); return s }
