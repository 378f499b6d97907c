package ext

import (
	"sluice/packet"
	"sluice/tables"
)

// Bits of a connection's state as the state and conntrack matches know it.
const (
	stateInvalid = 1 << iota
	stateEstablished
	stateRelated
	stateNew
	stateUntracked
	stateSNAT
	stateDNAT
)

// stateOf is the bit of a packet's relation to its connection. A packet that
// conntrack has not seen counts as invalid.
var stateOf = [...]uint8{
	packet.CtNone:             stateInvalid,
	packet.CtEstablished:      stateEstablished,
	packet.CtRelated:          stateRelated,
	packet.CtNew:              stateNew,
	packet.CtEstablishedReply: stateEstablished,
	packet.CtRelatedReply:     stateRelated,
	packet.CtInvalid:          stateInvalid,
	packet.CtUntracked:        stateUntracked,
}

func packetState(p *packet.Packet) uint8 {
	if hasTemplate(p) {
		return stateNew
	}
	if int(p.CtInfo) < len(stateOf) {
		return stateOf[p.CtInfo]
	}
	return stateInvalid
}

var stateWords = tables.StateList{
	What:  "state",
	Words: []string{"INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED"},
	Bits:  []uint64{stateInvalid, stateNew, stateRelated, stateEstablished, stateUntracked},
	Empty: "\"--state\" requires a list of states with no spaces, e.g. ESTABLISHED,RELATED",
}

var matchState = &tables.Match{
	Name:     "state",
	Families: tables.V4V6,
	Doc:      "Matches the state of the packet's connection; conntrack knows more.",
	Options: []tables.Option{{
		Name: "state", Type: stateWords, Required: true, Negatable: true,
		Arg: "state[,state]…", Doc: "INVALID, NEW, RELATED, ESTABLISHED or UNTRACKED",
	}},
	List: func(a *tables.Args, _ bool) string {
		v := a.Get("state")
		return notOf(v) + " state " + stateWords.Format(v)
	},
	Depends: tables.DependsCtState,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		v := a.Get("state")
		mask := uint8(v.Lo)
		if v.Not {
			mask = ^mask
		}
		return func(_ *tables.Context, p *packet.Packet) bool { return packetState(p)&mask != 0 }, nil
	},
}
