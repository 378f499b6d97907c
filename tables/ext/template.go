package ext

import (
	"sluice/conntrack"
	"sluice/packet"
	"sluice/tables"
)

// Between a CT rule and conntrack a packet has a template, and to the matches
// that is a connection: NEW, without addresses and mark.
var template = func() *conntrack.Entry {
	e := new(conntrack.Entry)
	e.SetStatus(conntrack.Confirmed)
	return e
}()

func hasTemplate(p *packet.Packet) bool { return p.CtInfo == packet.CtNone && p.Ct != 0 }

// connection is what matches take for the packet's connection, to read from; nil: none.
func connection(c *tables.Context, p *packet.Packet) *conntrack.Entry {
	if e := c.Entry(p); e != nil || !hasTemplate(p) {
		return e
	}
	return template
}
