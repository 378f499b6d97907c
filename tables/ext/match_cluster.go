package ext

import (
	"encoding/binary"
	"fmt"

	"sluice/conntrack"
	"sluice/packet"
	"sluice/packet/jhash"
	"sluice/tables"
)

// nodeNumber is a node, or how many there are. (iptables holds masks to the same
// range, and so cannot read what it prints.)
var nodeNumber = tables.Uint{Min: 1, Max: 32}

// nodeMask is a bit for each node.
type nodeMask struct{ tables.Uint }

func (t nodeMask) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	if t.Uint.Parse(o, text, v) != nil {
		return nodeNumber.Parse(o, text, v) // for its message
	}
	return nil
}

// clusterMask is the nodes that the options name, the last of them if there are two.
func clusterMask(a *tables.Args) uint64 {
	if a.Last("cluster-local-node", "cluster-local-nodemask") == "cluster-local-node" {
		return 1 << (a.Num("cluster-local-node") - 1)
	}
	return a.Num("cluster-local-nodemask")
}

var matchCluster = &tables.Match{
	Name:     "cluster",
	Families: tables.V4V6,
	Doc:      "Matches the share of connections that falls to this node of a cluster in which every node sees all packets. The share is the kernel's: a hash of the connection's source address.",
	Options: []tables.Option{
		{Name: "cluster-total-nodes", Type: nodeNumber, Required: true, Arg: "number", Doc: "how many nodes there are, up to 32"},
		{Name: "cluster-local-node", Type: nodeNumber, Negatable: true, Excludes: []string{"cluster-local-nodemask"}, Arg: "number", Doc: "the node whose share it is, from 1"},
		{Name: "cluster-local-nodemask", Type: nodeMask{tables.Uint{Min: 1, Max: all32}}, Negatable: true, Arg: "mask", Doc: "bits of the nodes whose share it is"},
		{Name: "cluster-hash-seed", Type: tables.U32, Required: true, Arg: "number", Doc: "the hash's seed, the same on all nodes"},
	},
	First: func(a *tables.Args) error {
		node, mask := a.Has("cluster-local-node"), a.Has("cluster-local-nodemask")
		complete := a.Has("cluster-total-nodes") && a.Has("cluster-hash-seed")
		tooBig := clusterMask(a)>>a.Num("cluster-total-nodes") != 0
		switch {
		case !node && !mask:
			return tables.Usagef("cluster match: `--cluster-local-node' or`--cluster-local-nodemask' is missing")
		case complete && tooBig && node:
			return tables.Usagef("cluster match: `--cluster-local-node' must be <= `--cluster-total-nodes'")
		case complete && tooBig:
			return tables.Usagef("cluster match: `--cluster-local-nodemask' too big for `--cluster-total-nodes'")
		}
		return nil
	},
	Final: func(a *tables.Args) error {
		if v := a.Get("cluster-local-node"); v.Set {
			a.Set("cluster-local-nodemask", tables.Value{Lo: clusterMask(a), Not: v.Not})
			a.Clear("cluster-local-node")
		}
		return nil
	},
	Save: func(a *tables.Args) string {
		v := a.Get("cluster-local-nodemask")
		return fmt.Sprintf("%s --cluster-local-nodemask 0x%08x --cluster-total-nodes %d --cluster-hash-seed 0x%08x",
			notOf(v), v.Lo, a.Num("cluster-total-nodes"), a.Num("cluster-hash-seed"))
	},
	List: func(a *tables.Args, _ bool) string {
		v := a.Get("cluster-local-nodemask")
		return fmt.Sprintf(" cluster %snode_mask=0x%08x total_nodes=%d hash_seed=0x%08x",
			bang(v), v.Lo, a.Num("cluster-total-nodes"), a.Num("cluster-hash-seed"))
	},
	Compile: func(a *tables.Args, env *tables.Env) (tables.Pred, error) {
		v := a.Get("cluster-local-nodemask")
		mask, not := uint32(v.Lo), v.Not
		nodes, seed := uint32(a.Num("cluster-total-nodes")), uint32(a.Num("cluster-hash-seed"))
		return func(c *tables.Context, p *packet.Packet) bool {
			// Ethernet multicast with a unicast address is how all nodes get to see
			// the packet: from here on it counts as the router's own.
			if p.PktType == packet.PktMulticast && !multicastDst(p) {
				p.PktType = packet.PktHost
			}
			e := c.Entry(p)
			if e == nil {
				return false
			}
			t := e.Tuple(conntrack.Original)
			if m, ok := env.CT.Master(e); ok {
				t = m
			}
			return (1<<clusterNode(t, nodes, seed)&mask != 0) != not
		}, nil
	},
}

// clusterNode is the node, from 0, to which a connection falls.
func clusterNode(t *conntrack.Tuple, nodes, seed uint32) uint32 {
	// Of an IPv6 address too, Linux hashes the first 32 bits alone.
	return jhash.Scale(jhash.Hash1(binary.NativeEndian.Uint32(t.Src[:]), seed), nodes)
}

func multicastDst(p *packet.Packet) bool {
	d := p.Dst()
	if p.Family == packet.IPv4 {
		return d[0]>>4 == 0xe
	}
	return d[0] == 0xff
}
