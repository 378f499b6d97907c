package ext

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"sluice/packet"
	"sluice/packet/jhash"
	"sluice/tables"
)

// queueRange is first:last, in Value.Lo and Hi.
type queueRange struct{}

func (queueRange) Args() int { return 1 }

func (queueRange) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	if err := tables.U16Range.Parse(o, text, v); err != nil {
		return err
	}
	if !strings.Contains(text[0], ":") {
		return tables.Usagef("Bad range \"%s\"", text[0])
	}
	if v.Lo >= v.Hi {
		return tables.Usagef("%d should be less than %d", v.Lo, v.Hi)
	}
	return nil
}

func (queueRange) Format(v *tables.Value) string { return fmt.Sprintf("%d:%d", v.Lo, v.Hi) }

var targetNFQUEUE = &tables.Target{
	Name:     "NFQUEUE",
	Families: tables.V4V6,
	Doc:      "Lets the packet wait until the program that has the queue has decided about it (package sluice/router/nfqueue). Without a program it is dropped.",
	Options: []tables.Option{
		{Name: "queue-num", Type: tables.U16, Excludes: []string{"queue-balance"}, Arg: "number", Doc: "the queue; default 0"},
		{Name: "queue-balance", Type: queueRange{}, Excludes: []string{"queue-num"}, Arg: "first:last", Doc: "spread connections over these queues"},
		{Name: "queue-bypass", Type: tables.Flag, Doc: "without a program the packet passes"},
		{Name: "queue-cpu-fanout", Type: tables.Flag, Also: []string{"queue-balance"}, Doc: "choose the queue by worker instead of connection"},
	},
	Save: func(a *tables.Args) string { return queueText(a, "--queue-") },
	List: func(a *tables.Args, _ bool) string { return " NFQUEUE" + queueText(a, "") },
	Check: func(a *tables.Args, _ *tables.Place) error {
		if lo, hi := a.Range("queue-balance"); hi-lo == 65535 {
			return errors.New("NFQUEUE: too many queues")
		}
		return nil
	},
	Compile: func(a *tables.Args, _ *tables.Env) (tables.TargetFunc, error) {
		first, total := uint32(a.Num("queue-num")), uint32(1)
		if v := a.Get("queue-balance"); v.Set {
			first, total = uint32(v.Lo), uint32(v.Hi-v.Lo+1)
		}
		bypass, fanout := a.Has("queue-bypass"), a.Has("queue-cpu-fanout")
		return func(c *tables.Context, p *packet.Packet) tables.Result {
			num := first
			switch {
			case total == 1:
			case fanout:
				num += uint32(c.Worker) % total
			default:
				num += jhash.Scale(queueHash(p), total)
			}
			if c.Queue == nil {
				if bypass {
					return tables.Accept
				}
				return tables.Drop
			}
			return c.Queue(uint16(num), bypass, p)
		}, nil
	},
}

func queueText(a *tables.Args, sep string) string {
	s := fmt.Sprintf(" %snum %d", sep, a.Num("queue-num"))
	if v := a.Get("queue-balance"); v.Set {
		s = " " + sep + "balance " + queueRange{}.Format(v)
	}
	if a.Has("queue-bypass") {
		s += " " + sep + "bypass"
	}
	if a.Has("queue-cpu-fanout") {
		s += " " + sep + "cpu-fanout"
	}
	return s
}

// queueHash is the same for both directions of a flow.
func queueHash(p *packet.Packet) uint32 {
	b := p.Bytes()
	if p.Family == packet.IPv4 {
		s, d := binary.BigEndian.Uint32(b[12:]), binary.BigEndian.Uint32(b[16:])
		return jhash.Hash3(min(s, d), max(s, d), uint32(b[9]), 0)
	}
	s, d := binary.BigEndian.Uint32(b[20:]), binary.BigEndian.Uint32(b[36:])
	return jhash.Hash3(min(s, d), max(s, d), binary.BigEndian.Uint32(b[12:])^binary.BigEndian.Uint32(b[28:]), 0)
}
