// Package ext holds the match and target extensions of iptables: one file per
// extension, match_NAME.go or target_NAME.go, each with one value (or one per
// family) that registry.go lists by name. There is no init.
//
// # Writing an extension
//
//	var matchLength = &tables.Match{
//		Name:     "length",
//		Families: tables.V4V6,
//		Doc:      "Matches the length of the layer-3 packet in bytes.",
//		Options: []tables.Option{{
//			Name: "length", Type: tables.U16Range, Required: true, Negatable: true,
//			Arg: "length[:length]", Doc: "packet length or range in bytes",
//		}},
//		List: func(a *tables.Args, numeric bool) string { return … },
//		Depends: tables.DependsLength,
//		Compile: func(a *tables.Args, env *tables.Env) (tables.Pred, error) {
//			lo, hi, not := a.Get("length").Lo, a.Get("length").Hi, a.Not("length")
//			return func(_ *tables.Context, p *packet.Packet) bool {
//				n := uint64(p.Len())
//				return (n >= lo && n <= hi) != not
//			}, nil
//		},
//	}
//
// Options are data. From them come: reading (abbreviations, "--a=b", "!" before
// the option where it is Negatable), the refusals "can only be used once",
// "cannot be inverted", "must be specified" (Required), "cannot be used together
// with" (Excludes), "also requires" (Also), and, without a Save of its own, the
// form that iptables-save prints: the options that were given, in the order of
// Options. Put them in the order in which iptables prints them.
//
// A Type reads an argument into a tables.Value and prints it: tables.Flag, U8,
// U16, U32, U64 (or Uint{Min, Max, Hex}), U8Range … U64Range ("5", "5:7", ":7"),
// MarkMask ("1", "0x1/0xff"), String{Min, Max, Trim}, Host, HostMask,
// PortRangeType (as tcp reads ports), ServiceRange (as udp does), OneOf and
// StateList in package tables; a file may have a Type of its own, which is three
// methods. Errors are tables.Usagef(…) with the text that iptables prints after
// "iptables v1.8.9 (nf_tables): ", a newline at its end included where the real
// one prints an empty line before "Try `iptables -h'…".
//
// First looks at all options together at the end of the text, before Required,
// Excludes and Also, and refuses in iptables' words. Final comes when that is
// done for the whole rule: it fills in defaults (a.Set, a.Clear, a.State) and
// refuses what only sluice refuses. Save and List print exactly what iptables
// prints, leading space included; the default of List is " name value". List's
// numeric is -n.
//
// Tables, Hooks, Protos and Check are the kernel's part: they are asked at
// commit, with the hooks that the chain is reachable from, and a refusal is
// EINVAL ("iptables: Invalid argument. Run `dmesg' for more information."); the
// text of Check's error is what the kernel says in dmesg, in our words. Another
// errno, from Check or Compile, is tables.Refuse(errno, …).
//
// Compile makes the closure that runs, once in the rule's life: later rulesets
// share it, so state (a token bucket) lives in it. The closure runs on every
// worker at once: shared state is atomic; it takes no lock, does not allocate
// and cannot panic: test lengths first (p.HasL4…). p.Now is the clock. A match
// that finds the packet malformed sets c.Hotdrop and returns false. A target
// returns tables.Continue, Accept, Drop, Return or Stolen. c.Entry(p) is the
// packet's connection, or nil.
//
// Depends says what the answer depends on beyond the tuple, hook and
// interfaces: or'ed flags, DependsNothing if on nothing else. Leave it zero for
// what must run for every packet (limit, LOG, anything with state or effect on
// the outside).
//
// Each extension has testdata/match_NAME.txtar (or target_), whose sections
// text_test.go explains: what is accepted and printed, what is refused and how.
// "go test ./tables/ext -run TextIsTrue -update", as root, fills in what the real
// iptables says.
package ext
