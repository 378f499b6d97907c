// Package nfct is the command line of nfct(8): the timeout policies that
// -j CT --timeout names.
package nfct

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"sluice/conntrack"
	"sluice/packet"
)

const banner = "nfct v1.4.7: "

var commands = []string{"list", "add", "delete", "get", "flush", "disable", "default-set", "default-get"}

// usage is an error that says it all.
type usage string

func (u usage) Error() string { return string(u) }

// Run does what nfct does with argv (argv[0] is its name) on t and gives the exit status.
func Run(t *conntrack.Table, argv []string, stdout, stderr io.Writer) int {
	var out bytes.Buffer
	err := run(t, argv[1:], &out)
	stdout.Write(out.Bytes())
	var u usage
	switch {
	case err == nil:
		return 0
	case errors.As(err, &u):
		io.WriteString(stderr, string(u)+"\n")
	default:
		text := err.Error()
		fmt.Fprintf(stderr, "%snetlink error: %s%s\n", banner, strings.ToUpper(text[:1]), text[1:])
	}
	return 1
}

func run(t *conntrack.Table, args []string, out *bytes.Buffer) error {
	const synopsis = "Usage: nfct command subsystem [parameters]..."
	if len(args) < 2 {
		return usage(synopsis)
	}
	// The subsystem may come first.
	cmd, sub := args[0], args[1]
	if cmd == "timeout" || cmd == "helper" {
		if cmd, sub = sub, cmd; !slices.Contains(commands, cmd) {
			return usage(banner + "Unknown command: " + sub + "\n" + synopsis)
		}
	}
	switch {
	case cmd == "version", cmd == "help":
		return usage(banner + "Unknown command: " + cmd + "\n" + synopsis)
	case sub == "version" && slices.Contains(commands, cmd):
		out.WriteString(banner + "utility for the Netfilter's Connection Tracking System\n")
		return nil
	case !slices.Contains(commands, cmd) || sub != "helper" && sub != "timeout":
		return usage(banner + "Unknown subsystem: " + cmd + "\n" + synopsis)
	}
	if sub == "helper" {
		return helper(cmd)
	}
	args = args[2:]
	switch cmd {
	case "list":
		if len(args) > 0 {
			return usage(banner + "too many arguments")
		}
		for _, tp := range t.TimeoutPolicies() {
			show(out, tp)
		}
		return nil
	case "flush":
		if len(args) > 0 {
			return usage(banner + "too many arguments")
		}
		for _, tp := range t.TimeoutPolicies() {
			t.DeleteTimeoutPolicy(tp.Name) // those in use stay
		}
		return nil
	case "get", "delete":
		return one(t, cmd, args, out)
	case "add":
		return add(t, args)
	case "default-set":
		return defaultSet(t, args)
	case "default-get":
		return defaultGet(t, args, out)
	}
	return usage(banner + "Missing command\nnfct <list|add|delete|get|default-set|default-get|flush> timeout [<parameters>, ...]")
}

// helper: helpers in programs of their own are nfct's other matter. Sluice's are
// its own, so it answers as a kernel without support for the others.
func helper(cmd string) error {
	if strings.HasPrefix(cmd, "default-") {
		return usage(banner + "Unknown command: helper\n" + banner + "Missing command\nnfct helper list|add|delete|disable|get|flush [parameters...]")
	}
	return usage(banner + "netlink error: Invalid argument\n" + banner + "sluice has no helpers in other programs; its own are named by -j CT --helper")
}

func one(t *conntrack.Table, cmd string, args []string, out *bytes.Buffer) error {
	switch {
	case len(args) == 0:
		return usage(banner + "missing timeout policy name")
	case len(args) > 1:
		return usage(banner + "too many arguments")
	case cmd == "delete":
		return t.DeleteTimeoutPolicy(policyName(args[0]))
	}
	tp := t.TimeoutPolicy(policyName(args[0]))
	if tp == nil {
		return conntrack.ErrNoPolicy
	}
	show(out, tp)
	return nil
}

// policyName is a name as long as the kernel's may be.
func policyName(s string) string { return s[:min(len(s), 31)] }

// protocolOf reads a family and a protocol.
func protocolOf(args []string) (family, proto uint8, err error) {
	family, ok := conntrack.TimeoutFamily(args[0])
	if !ok {
		return 0, 0, usage(banner + "unknown layer 3 protocol")
	}
	if proto, ok = conntrack.TimeoutProtocol(args[1]); !ok {
		return 0, 0, usage(banner + "unknown layer 4 protocol")
	}
	return family, proto, nil
}

// dccpStates are DCCP's, which Linux has no more; nfct still reads them.
var dccpStates = []string{"request", "respond", "partopen", "open", "closereq", "closing", "timewait"}

// states reads pairs of a state and its timeout.
func states(proto uint8, name string, args []string, set func(state int, seconds uint32)) error {
	names := conntrack.TimeoutStates(proto)
	if proto == packet.ProtoDCCP {
		names = dccpStates
	}
	for ; len(args) > 0; args = args[2:] {
		if len(args) == 1 {
			return usage(banner + "missing value for this timeout")
		}
		i := slices.Index(names, strings.ToLower(args[0]))
		if i < 0 {
			return usage(fmt.Sprintf("%sWrong state name: `%s' for protocol `%s'", banner, args[0], name))
		}
		v := uint64(0)
		for _, c := range args[1] {
			if c < '0' || c > '9' {
				break
			}
			if v = v*10 + uint64(c-'0'); v > conntrack.MaxTimeout {
				return conntrack.ErrInvalid
			}
		}
		set(i, uint32(v))
	}
	return nil
}

func add(t *conntrack.Table, args []string) error {
	if len(args) < 3 {
		return usage(banner + "missing parameters\nsyntax: nfct add timeout name family protocol state1 timeout1 ...")
	}
	fam, proto, err := protocolOf(args[1:])
	if err != nil {
		return err
	}
	tp := conntrack.TimeoutPolicy{Name: policyName(args[0]), Family: fam, Proto: proto, Seconds: t.DefaultTimeouts(proto)}
	if err := states(proto, args[2], args[3:], func(i int, v uint32) {
		if i < len(tp.Seconds) {
			tp.Seconds[i] = v
		}
	}); err != nil {
		return err
	}
	if len(args) == 3 {
		return conntrack.ErrInvalid
	}
	return t.AddTimeoutPolicy(tp)
}

func defaultSet(t *conntrack.Table, args []string) error {
	if len(args) < 3 {
		return usage(banner + "missing parameters\nsyntax: nfct default-set timeout family protocol state1 timeout1...")
	}
	_, proto, err := protocolOf(args)
	if err != nil {
		return err
	}
	var seconds []func()
	if err := states(proto, args[1], args[2:], func(i int, v uint32) {
		seconds = append(seconds, func() { t.SetDefaultTimeout(proto, i, v) })
	}); err != nil {
		return err
	}
	if conntrack.TimeoutStates(proto) == nil {
		return conntrack.ErrNoTimeout
	}
	for _, set := range seconds {
		set()
	}
	return nil
}

func defaultGet(t *conntrack.Table, args []string, out *bytes.Buffer) error {
	if len(args) < 2 {
		return usage(banner + "missing parameters\nsyntax: nfct default-get timeout family protocol")
	}
	fam, proto, err := protocolOf(args)
	if err != nil {
		return err
	}
	if conntrack.TimeoutStates(proto) == nil {
		return conntrack.ErrNoTimeout
	}
	body(out, fam, proto, t.DefaultTimeouts(proto))
	return nil
}

func show(out *bytes.Buffer, tp *conntrack.TimeoutPolicy) {
	fmt.Fprintf(out, ".%s = {\n", tp.Name)
	body(out, tp.Family, tp.Proto, tp.Seconds)
}

func body(out *bytes.Buffer, family, proto uint8, seconds []uint32) {
	number := 2 // AF_INET
	if family == packet.IPv6 {
		number = 10
	}
	fmt.Fprintf(out, "\t.l3proto = %d,\n\t.l4proto = %d,\n\t.policy = {\n", number, proto)
	for i, name := range conntrack.TimeoutStates(proto) {
		fmt.Fprintf(out, "\t\t.%s = %d,\n", strings.ToUpper(name), seconds[i])
	}
	out.WriteString("\t},\n};\n")
}
