package iptables

import (
	"fmt"
	"strings"

	"sluice/packet"
	"sluice/tables"
)

const usage = `%[1]s %[2]s

Usage: %[1]s [-t TABLE] COMMAND [options]

Commands:
  -A, --append CHAIN RULE             add a rule at the end of a chain
  -I, --insert CHAIN [N] RULE         put a rule before the N'th (default 1)
  -R, --replace CHAIN N RULE          put a rule in the place of the N'th
  -D, --delete CHAIN RULE | CHAIN N   delete a rule that says the same, or the N'th
  -C, --check CHAIN RULE              succeed if there is a rule that says the same
  -L, --list [CHAIN [N]]              show rules as a table
  -S, --list-rules [CHAIN [N]]        show rules as commands
  -F, --flush [CHAIN]                 delete all rules
  -Z, --zero [CHAIN [N]]              set counters to zero (also together with -L or -S)
  -N, --new-chain CHAIN               make a chain
  -X, --delete-chain [CHAIN]          delete a chain that is empty and not referred to, or all such
  -E, --rename-chain OLD NEW          rename a chain
  -P, --policy CHAIN ACCEPT|DROP      what happens at the end of a builtin chain

A rule is made of these; "!" before an option marked with it negates it:
  ! -p, --protocol PROTO              tcp, udp, icmp … or a number; "all" is any
  ! -s, --source ADDRESS[/MASK][,…]   several addresses make several rules
  ! -d, --destination ADDRESS[/MASK][,…]
  ! -i, --in-interface NAME           "NAME+" is every interface that begins so
  ! -o, --out-interface NAME
%[3]s    -m, --match NAME                  an extension, with its own options after it
    -j, --jump TARGET                 ACCEPT, DROP, RETURN, a chain, or an extension
    -g, --goto CHAIN                  as -j, but without coming back
    -c, --set-counters PACKETS BYTES  what the rule's counters begin with

Other options:
  -t, --table TABLE                   raw, mangle, nat, filter (default) or security
  -v, --verbose                       interfaces and counters too
  -n, --numeric                       no names for addresses, protocols and ports
  -x, --exact                         counters in full
      --line-numbers                  rules with their numbers
  -w, --wait [SECONDS]                accepted: there is no lock to wait for
  -M, --modprobe COMMAND              accepted: there are no modules to load
  -4, --ipv4, -6, --ipv6              the family of a line that both restores read
  -h, --help; -V, --version
`

// help prints -h: the program's usage, and that of the extensions that ps has
// read so far, the target first.
func (x *tool) help(ps *tables.Parser) {
	frag := "  ! -f, --fragment                    second and later fragments only\n"
	if x.fam == packet.IPv6 {
		frag = ""
	}
	x.printf(usage, x.prog, version, frag)
	target, matches := ps.Extensions()
	if target != nil {
		x.extHelp("target", target.Name, target.Doc, target.Options)
	}
	for _, m := range matches {
		x.extHelp("match", m.Name, m.Doc, m.Options)
	}
}

func (x *tool) extHelp(kind, name, doc string, options []tables.Option) {
	x.printf("\n%s %s: %s\n", name, kind, doc)
	for i := range options {
		o := &options[i]
		neg := "  "
		if o.Negatable {
			neg = "! "
		}
		names := strings.Join(append([]string{o.Name}, o.Aliases...), ", --")
		text := strings.TrimRight("  "+neg+"--"+names+" "+o.Arg, " ")
		x.printf("%-37s %s\n", text, o.Doc)
	}
}

func restoreHelp(prog string) string {
	return fmt.Sprintf(`Usage: %s [options] [FILE]
  -n, --noflush      keep the rules that are there
  -c, --counters     set counters to what the text says
  -t, --test         do everything but put the result into force
  -T, --table TABLE  take this table only
  -v, --verbose      say what is done
  -w, --wait [SECONDS], -M, --modprobe COMMAND  accepted, without effect
  -h, --help; -V, --version
`, prog)
}
