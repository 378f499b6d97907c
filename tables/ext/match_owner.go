package ext

import (
	"errors"
	"fmt"
	"os/user"
	"strconv"

	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
)

// ownerID is a user's or group's name, number, or range of numbers.
type ownerID struct{ group bool }

func (ownerID) Args() int { return 1 }

func (t ownerID) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	bad := tables.Usagef("owner: Bad value for \"--%s\" option: \"%s\"", o.Name, text[0])
	if n, ok := t.lookup(text[0]); ok {
		v.Lo, v.Hi = n, n
		return nil
	}
	lo, rest, ok := tables.Strtoul(text[0], 0, 1<<32-2)
	v.Lo, v.Hi = lo, lo
	if ok && rest != "" && (rest[0] == '-' || rest[0] == ':') {
		v.Hi, rest, ok = tables.Strtoul(rest[1:], 0, 1<<32-2)
	}
	if !ok || rest != "" {
		return bad
	}
	return nil
}

func (t ownerID) lookup(name string) (uint64, bool) {
	id := ""
	if t.group {
		if g, err := user.LookupGroup(name); err == nil {
			id = g.Gid
		}
	} else if u, err := user.Lookup(name); err == nil {
		id = u.Uid
	}
	n, err := strconv.ParseUint(id, 10, 32)
	return n, err == nil
}

func (ownerID) Format(v *tables.Value) string {
	if v.Lo == v.Hi {
		return strconv.FormatUint(v.Lo, 10)
	}
	return fmt.Sprintf("%d-%d", v.Lo, v.Hi)
}

// name prints one number by the name of its user or group, if there is one.
func (t ownerID) name(v *tables.Value) string {
	if v.Lo == v.Hi {
		id := strconv.FormatUint(v.Lo, 10)
		if t.group {
			if g, err := user.LookupGroupId(id); err == nil {
				return g.Name
			}
		} else if u, err := user.LookupId(id); err == nil {
			return u.Username
		}
	}
	return t.Format(v)
}

// supplGroups comes behind --gid-owner.
type supplGroups struct{ tables.Type }

func (supplGroups) Parse(o *tables.OptionContext, _ []string, _ *tables.Value) error {
	if !o.Args.Has("gid-owner") {
		return tables.Usagef("owner: Bad value for \"--suppl-groups\" option: \"you need to use --gid-owner first\"")
	}
	return nil
}

var matchOwner = &tables.Match{
	Name:     "owner",
	Families: tables.V4V6,
	Doc:      "Matches packets of the router's own sockets by the user and group that the socket has. Forwarded packets, and answers without a socket, have no owner.",
	Options: []tables.Option{
		{Name: "socket-exists", Type: tables.Flag, Negatable: true, Doc: "the packet belongs to a socket"},
		{Name: "uid-owner", Type: ownerID{}, Negatable: true, Arg: "user[-user]", Doc: "the socket's user by name or number"},
		{Name: "gid-owner", Type: ownerID{group: true}, Negatable: true, Arg: "group[-group]", Doc: "the socket's group by name or number"},
		{Name: "suppl-groups", Type: supplGroups{tables.Flag}, Doc: "supplementary groups count as well"},
	},
	Hooks:   hooks.At(hooks.Output, hooks.Postrouting),
	Depends: tables.DependsOwner,
	First:   needOption("owner: At least one of --uid-owner, --gid-owner or --socket-exists is required"),
	Check: func(a *tables.Args, _ *tables.Place) error {
		for _, o := range []string{"uid-owner", "gid-owner"} {
			if lo, hi := a.Range(o); lo > hi {
				return errors.New("the range of --" + o + " is reversed")
			}
		}
		return nil
	},
	List: func(a *tables.Args, numeric bool) string {
		var s string
		if a.Has("socket-exists") {
			s += notOf(a.Get("socket-exists")) + " owner socket exists"
		}
		for _, o := range []struct {
			option, title string
			id            ownerID
		}{{"uid-owner", "UID", ownerID{}}, {"gid-owner", "GID", ownerID{group: true}}} {
			v := a.Get(o.option)
			if !v.Set {
				continue
			}
			text := o.id.Format(v)
			if !numeric {
				text = o.id.name(v)
			}
			s += notOf(v) + " owner " + o.title + " match " + text
		}
		if a.Has("suppl-groups") {
			s += " incl. suppl. groups"
		}
		return s
	},
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		sock, uid, gid := *a.Get("socket-exists"), *a.Get("uid-owner"), *a.Get("gid-owner")
		// Without a socket, a rule matches if all that it asks for is negated.
		none := (!sock.Set || sock.Not) && (!uid.Set || uid.Not) && (!gid.Set || gid.Not)
		return func(_ *tables.Context, p *packet.Packet) bool {
			if p.Flags&(packet.HasOwner|packet.SystemSocket) == 0 {
				return none
			}
			if sock.Set && sock.Not {
				return false
			}
			if p.Flags&packet.HasOwner == 0 {
				return (!uid.Set || uid.Not) && (!gid.Set || gid.Not)
			}
			if uid.Set && (uint64(p.UID) >= uid.Lo && uint64(p.UID) <= uid.Hi) == uid.Not {
				return false
			}
			return !gid.Set || (uint64(p.GID) >= gid.Lo && uint64(p.GID) <= gid.Hi) != gid.Not
		}, nil
	},
}
