package ext

import (
	"fmt"
	"strconv"

	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
)

// onePort is a port's number or service name, in Value.Lo.
type onePort struct{}

func (onePort) Args() int { return 1 }

func (onePort) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	if text[0] == "" {
		return nil // the real one takes it for 0
	}
	n, err := tables.NumericService(text[0])
	v.Lo = n
	return err
}

func (onePort) Format(v *tables.Value) string { return strconv.FormatUint(v.Lo, 10) }

// tproxyMark is value/mask, always with the mask.
type tproxyMark struct{}

func (tproxyMark) Args() int { return 1 }

func (tproxyMark) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	return tables.MarkMask.Parse(o, text, v)
}

func (tproxyMark) Format(v *tables.Value) string { return fmt.Sprintf("0x%x/0x%x", v.Lo, v.Hi) }

var targetTPROXY = &tables.Target{
	Name:     "TPROXY",
	Families: tables.V4V6,
	Doc:      "Hands the packet to a transparent socket of the router without changing it: to its connection, or to who listens at another port or address. A rule and a route have to make it local (a mark, and a route of type local).",
	Tables:   tables.In(tables.Mangle),
	Hooks:    hooks.At(hooks.Prerouting),
	Options: []tables.Option{
		{Name: "on-port", Type: onePort{}, Required: true, Arg: "port", Doc: "the port that is listened on; 0: the packet's own"},
		{Name: "on-ip", Type: gateway{}, Arg: "address", Doc: "the address that is listened at; default: that of the incoming interface"},
		{Name: "tproxy-mark", Type: tproxyMark{}, Arg: "value[/mask]", Doc: "mark the packet"},
	},
	Final: func(a *tables.Args) error {
		if !a.Has("on-ip") {
			a.Set("on-ip", tables.Value{Lo: uint64(a.Family)})
		}
		if !a.Has("tproxy-mark") {
			a.Set("tproxy-mark", tables.Value{})
		}
		return nil
	},
	List: func(a *tables.Args, _ bool) string {
		return fmt.Sprintf(" TPROXY redirect %s:%d mark %s", gateway{}.Format(a.Get("on-ip")), a.Num("on-port"), tproxyMark{}.Format(a.Get("tproxy-mark")))
	},
	Check: func(_ *tables.Args, at *tables.Place) error {
		if !at.Has(packet.ProtoTCP, packet.ProtoUDP) {
			return tables.Refuse(0, "TPROXY can be used with -p tcp or -p udp only")
		}
		return nil
	},
	Compile: func(a *tables.Args, env *tables.Env) (tables.TargetFunc, error) {
		ip, port := a.Get("on-ip").A, uint16(a.Num("on-port"))
		mark, mask := a.Range("tproxy-mark")
		return func(c *tables.Context, p *packet.Packet) tables.Result {
			if env == nil || env.Sockets == nil || p.Flags&packet.HasPorts == 0 {
				return tables.Drop
			}
			s, ok := tproxySocket(env, p, ip, port)
			if !ok || !s.Transparent {
				return tables.Drop
			}
			p.Mark = p.Mark&^uint32(mask) ^ uint32(mark)
			p.Socket = s.ID
			return tables.Accept
		}, nil
	},
}

// tproxySocket is the connection that p belongs to, or who listens at the
// address and port that the rule names.
func tproxySocket(env *tables.Env, p *packet.Packet, ip [16]byte, port uint16) (tables.Socket, bool) {
	k := tables.SocketKey{
		Family: p.Family, Proto: p.Proto, Local: p.Dst(), Remote: p.Src(), LocalPort: p.DstPort(), RemotePort: p.SrcPort(),
	}
	s, found := env.Sockets.Find(&k)
	if found = found && s.Connected; found {
		const flags = packet.TCPSyn | packet.TCPRst | packet.TCPAckFlag | packet.TCPFin
		if !s.TimeWait || p.TCPFlags()&flags != packet.TCPSyn {
			return s, true
		}
	}
	if k.Listener, k.Local = true, ip; ip == [16]byte{} {
		if a, ok := env.Routes.FirstAddr(p.Family, p.In); ok {
			k.Local = a
		} else {
			k.Local = p.Dst()
		}
	}
	if port != 0 {
		k.LocalPort = port
	}
	if l, ok := env.Sockets.Find(&k); ok {
		return l, true
	}
	return s, found // TIME_WAIT, and nobody listens
}
