package ext

import (
	"sluice/packet"
	"sluice/tables"
)

var matchUDP = &tables.Match{
	Name:     "udp",
	Families: tables.V4V6,
	Doc:      "Matches UDP ports. Later fragments never match.",
	Protos:   []uint8{packet.ProtoUDP},
	Options: []tables.Option{
		{Name: "source-port", Aliases: []string{"sport"}, Type: tables.ServiceRange, Negatable: true, Arg: "port[:port]", Doc: "source port or range"},
		{Name: "destination-port", Aliases: []string{"dport"}, Type: tables.ServiceRange, Negatable: true, Arg: "port[:port]", Doc: "destination port or range"},
	},
	First: needProto("UDP", "udp", packet.ProtoUDP),
	Save:  func(a *tables.Args) string { return savePorts(a, "source-port", "destination-port", false) },
	List: func(a *tables.Args, numeric bool) string {
		return " udp" + listPorts(a, numeric, "udp", "source-port", "destination-port")
	},
	Ports: func(a *tables.Args) (s, d tables.PortRange, ok bool) {
		return portRange(a.Get("source-port")), portRange(a.Get("destination-port")), true
	},
	Hint:    portHint("source-port", "destination-port"),
	Depends: tables.DependsNothing,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		return portsPred(portRange(a.Get("source-port")), portRange(a.Get("destination-port"))), nil
	},
}
