package memory

import (
	"fmt"
	"time"

	"sluice/conntrack"
)

// fresh sends the first packets of new flows, alone or, with established > 0,
// one for each packet of so many established flows. What it counts is then the
// established flows' packets. flood: the table is so small that the new flows
// keep it full.
type fresh struct {
	*bed
	next        uint32
	established []byte
	at          int
	flood       bool
	frames      []byte // of new flows, or of new and established ones in turn, made ahead
	sent        uint64
}

const (
	// roomForFlows bounds what a run leaves in the table; then it is emptied, unmeasured.
	roomForFlows = 1 << 19
	// aheadFrames are made at once, unmeasured.
	aheadFrames = 1 << 16
)

func newFresh(rules, established int, flood bool) (Run, error) {
	cfg := config(rules, 1)
	if established > 0 {
		cfg.Sysctl[0].Value = "65536"
	}
	b, err := newBed(cfg, 1)
	if err != nil {
		return nil, err
	}
	f := &fresh{bed: b, flood: flood, frames: make([]byte, aheadFrames*frameLen)}
	if established == 0 {
		return f, nil
	}
	if err := f.establish(established); err != nil {
		b.Close()
		return nil, err
	}
	if !flood { // as many packets, all of established flows
		b.lan.queues[0].frames = f.established
		return f, nil
	}
	// Fill the table.
	for range 4 << 16 / aheadFrames {
		f.ahead(aheadFrames)
		b.step()
	}
	f.sent = b.r.Status().Forwarded
	return f, nil
}

// start writes the next new flow's first packet.
func (f *fresh) start(b []byte) {
	n := f.next
	f.next++
	flow{10<<24 | 1<<16 + n%0x7f0000, 9<<24 | 9<<16 + n*0x9e37%60013, uint16(1024 + n%60000), uint16(1024 + n>>16)}.put(b)
}

// ahead makes the next n frames ready: of new flows or, with established flows,
// of either in turn.
func (f *fresh) ahead(n int) {
	for i := range n {
		b := f.frames[i*frameLen:][:frameLen]
		if f.established == nil || i&1 == 0 {
			f.start(b)
			continue
		}
		copy(b, f.established[f.at:])
		f.at = (f.at + frameLen) % len(f.established)
	}
	lan := f.lan.queues[0]
	lan.frames, lan.next, lan.left = f.frames[:n*frameLen], 0, n
}

// establish makes flows that are answered and assured.
func (f *fresh) establish(n int) error {
	lan, wan := f.lan.queues[0], f.wan.queues[0]
	f.established = udpFrames(n, func(i int) flow { return flowOf(0x700000 + i) })
	lan.frames, lan.left = f.established, n
	wan.sent = make([]byte, 0, len(f.established))
	f.r.Step(0)
	wan.frames, wan.left = answer(wan.sent), n
	wan.sent = nil
	f.r.Step(0)
	f.sent = uint64(2 * n)
	if err := f.expect(f.sent); err != nil {
		return err
	}
	// A UDP flow is assured once it has been answered for two seconds.
	f.r.Conntrack().Update(func(*conntrack.Snapshot) bool { return true }, func(*conntrack.Snapshot) conntrack.Change {
		return conntrack.Change{SetStatus: conntrack.SeenReply | conntrack.Assured}
	}, nil)
	return nil
}

func (f *fresh) Do(n int) (time.Duration, error) {
	var d time.Duration
	if f.established == nil {
		f.sent += uint64(n)
		for n > 0 {
			if f.r.Conntrack().Count() >= roomForFlows {
				f.r.Conntrack().Flush()
			}
			m := min(n, aheadFrames)
			n -= m
			f.ahead(m)
			d += f.step()
		}
		return d, f.expect(f.sent)
	}
	for left := 2 * n; left > 0; {
		m := min(left, aheadFrames)
		left -= m
		if f.flood {
			f.ahead(m)
		} else {
			f.lan.queues[0].left = m
		}
		d += f.step()
	}
	got := f.r.Status().Forwarded - f.sent
	f.sent += got
	if got < uint64(n) {
		return d, fmt.Errorf("%d of %d established packets were forwarded", got, n)
	}
	return d, nil
}
