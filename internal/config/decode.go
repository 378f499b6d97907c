package config

import (
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"sluice/router"
)

// node is a decoded value with its path in the document.
type node struct {
	val  any
	path string
}

func (n node) child(part string, val any) node { return node{val, join(n.path, part)} }

// decoder fills router.Config by its toml tags. It goes on after an error, so
// that all of them are reported.
type decoder struct {
	*report
	ix  *index
	dir string // that relative paths count from
}

// keyAt is the place of n's key, at the place of its value.
func (d *decoder) keyAt(n node) router.Position { return d.place(d.ix.keys, n.path) }
func (d *decoder) at(n node) router.Position    { return d.place(d.ix.vals, n.path) }

func (d *decoder) place(m map[string]int, path string) router.Position {
	for {
		if off, ok := m[path]; ok {
			return d.ix.position(off)
		}
		i := strings.LastIndex(path, "\x1f")
		if i < 0 {
			return router.Position{File: d.ix.file}
		}
		path = path[:i]
	}
}

// textParser makes a value of a string; an error may carry an offset in the string.
type textParser func(d *decoder, s string) (any, error)

// offsetError is an error at byte off of a string.
type offsetError struct {
	off  int
	text string
}

func (e *offsetError) Error() string { return e.text }

// value fills v from n.
func (d *decoder) value(n node, v reflect.Value) {
	if p, ok := texts[v.Type()]; ok {
		s, ok := n.val.(string)
		if i, isInt := n.val.(int64); isInt && numbers[v.Type()] {
			s, ok = strconv.FormatInt(i, 10), true
		}
		if !ok {
			d.errorf(d.at(n), "%s: want a string, not %s", label(n), kind(n.val))
			return
		}
		out, err := p(d, s)
		switch e := err.(type) {
		case nil:
			v.Set(reflect.ValueOf(out))
			if f := v.FieldByName; v.Kind() == reflect.Struct && f("Pos").IsValid() {
				f("Pos").Set(reflect.ValueOf(d.at(n)))
			}
		case *offsetError:
			d.errorf(d.ix.within(n.path, e.off), "%s: %s", label(n), e.text)
		default:
			d.errorf(d.at(n), "%s: %v", label(n), err)
		}
		return
	}
	switch v.Interface().(type) {
	case []router.PolicyConfig:
		d.readPolicies(n, v)
		return
	case []router.RuleLine:
		d.readRules(n, v)
		return
	case []router.SysctlConfig:
		d.readSysctls(n, v)
		return
	}
	switch v.Kind() {
	case reflect.String:
		if s, ok := n.val.(string); ok {
			v.SetString(s)
			return
		}
		d.errorf(d.at(n), "%s: want a string, not %s", label(n), kind(n.val))
	case reflect.Bool:
		if b, ok := n.val.(bool); ok {
			v.SetBool(b)
			return
		}
		d.errorf(d.at(n), "%s: want true or false, not %s", label(n), kind(n.val))
	case reflect.Int, reflect.Uint32, reflect.Uint8:
		d.integer(n, v)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, v.Elem())
	case reflect.Slice:
		d.slice(n, v)
	case reflect.Struct:
		d.table(n, v)
	case reflect.Map:
		d.numbers(n, v)
	default:
		panic("config: no way to read a " + v.Type().String())
	}
}

func (d *decoder) integer(n node, v reflect.Value) {
	i, ok := n.val.(int64)
	if !ok {
		d.errorf(d.at(n), "%s: want an integer, not %s", label(n), kind(n.val))
		return
	}
	most := int64(math.MaxInt32)
	if v.Kind() == reflect.Uint32 {
		most = math.MaxUint32
	} else if v.Kind() == reflect.Uint8 {
		most = math.MaxUint8
	}
	if i < 0 || i > most {
		d.errorf(d.at(n), "%s: %d is not between 0 and %d", label(n), i, most)
		return
	}
	if v.CanInt() {
		v.SetInt(i)
	} else {
		v.SetUint(uint64(i))
	}
}

// numbers reads a table of numbers under names of any kind.
func (d *decoder) numbers(n node, v reflect.Value) {
	m, ok := n.val.(map[string]any)
	if !ok {
		d.errorf(d.at(n), "%s: want a table, not %s", label(n), kind(n.val))
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	for _, key := range slices.Sorted(maps.Keys(m)) {
		e := reflect.New(v.Type().Elem()).Elem()
		d.value(n.child(key, m[key]), e)
		v.SetMapIndex(reflect.ValueOf(key), e)
	}
}

func (d *decoder) slice(n node, v reflect.Value) {
	list, ok := elements(n)
	if !ok {
		d.errorf(d.at(n), "%s: want a list, not %s", label(n), kind(n.val))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(list), len(list))
	for i, e := range list {
		d.value(e, out.Index(i))
	}
	v.Set(out)
}

func elements(n node) ([]node, bool) {
	var out []node
	switch list := n.val.(type) {
	case []any:
		for i, e := range list {
			out = append(out, n.child(strconv.Itoa(i), e))
		}
	case []map[string]any:
		for i, e := range list {
			out = append(out, n.child(strconv.Itoa(i), e))
		}
	default:
		return nil, false
	}
	return out, true
}

func (d *decoder) table(n node, v reflect.Value) {
	m, ok := n.val.(map[string]any)
	if !ok {
		want := "a table"
		if _, isList := elements(n); isList {
			want = "one table, [" + n.path + "]"
		}
		d.errorf(d.at(n), "%s: want %s, not %s", label(n), want, kind(n.val))
		return
	}
	if def, ok := v.Addr().Interface().(interface{ SetDefaults() }); ok {
		def.SetDefaults()
	}
	if p := v.FieldByName("Pos"); p.IsValid() {
		p.Set(reflect.ValueOf(d.keyAt(n)))
	}
	fields := map[string]reflect.Value{}
	for i := range v.NumField() {
		if tag := v.Type().Field(i).Tag.Get("toml"); tag != "" && tag != "-" {
			fields[tag] = v.Field(i)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		c := n.child(key, m[key])
		if f, ok := fields[key]; ok {
			d.value(c, f)
		} else if say := notHere(c); say != "" {
			d.errorf(d.keyAt(c), "%s: %s", label(c), say)
		} else {
			d.errorf(d.keyAt(c), "unknown key %s%s", quoteKey(key), suggest(key, slices.Sorted(maps.Keys(fields))))
		}
	}
}

// readPolicies reads policy = { CHAIN = "TARGET" }.
func (d *decoder) readPolicies(n node, v reflect.Value) {
	m, ok := n.val.(map[string]any)
	if !ok {
		d.errorf(d.at(n), "%s: want { CHAIN = \"ACCEPT\" or \"DROP\" }, not %s", label(n), kind(n.val))
		return
	}
	var out []router.PolicyConfig
	for _, chain := range d.inOrder(n, m) {
		c := n.child(chain, m[chain])
		s, ok := c.val.(string)
		if !ok {
			d.errorf(d.at(c), "policy of %s: want a string, not %s", chain, kind(c.val))
			continue
		}
		out = append(out, router.PolicyConfig{Pos: d.keyAt(c), Chain: chain, Target: s})
	}
	v.Set(reflect.ValueOf(out))
}

// inOrder is m's keys as the file has them.
func (d *decoder) inOrder(n node, m map[string]any) []string {
	keys := slices.Sorted(maps.Keys(m))
	slices.SortStableFunc(keys, func(a, b string) int {
		return d.ix.keys[join(n.path, a)] - d.ix.keys[join(n.path, b)]
	})
	return keys
}

// readRules reads rules = [ … ], with the place of each argument.
func (d *decoder) readRules(n node, v reflect.Value) {
	list, ok := elements(n)
	if !ok {
		d.errorf(d.at(n), "%s: want a list of rules, not %s", label(n), kind(n.val))
		return
	}
	var out []router.RuleLine
	for _, e := range list {
		s, ok := e.val.(string)
		if !ok {
			d.errorf(d.at(e), "%s: want a string, not %s", label(e), kind(e.val))
			continue
		}
		line := router.RuleLine{Pos: d.at(e), Text: s}
		args, err := splitArgs(s)
		if err != nil {
			d.errorf(d.ix.within(e.path, err.off), "%s: %s", label(e), err.text)
			continue
		}
		for _, a := range args {
			line.Args = append(line.Args, router.Arg{Pos: d.ix.within(e.path, a.off), Text: a.text})
		}
		out = append(out, line)
	}
	v.Set(reflect.ValueOf(out))
}

// readSysctls reads [sysctl]; names may be quoted, or TOML's dotted keys.
func (d *decoder) readSysctls(n node, v reflect.Value) {
	m, ok := n.val.(map[string]any)
	if !ok {
		d.errorf(d.at(n), "%s: want a table, not %s", label(n), kind(n.val))
		return
	}
	var out []router.SysctlConfig
	var walk func(n node, name string, m map[string]any)
	walk = func(n node, name string, m map[string]any) {
		for _, key := range d.inOrder(n, m) {
			c, full := n.child(key, m[key]), key
			if name != "" {
				full = name + "." + key
			}
			s := router.SysctlConfig{Pos: d.keyAt(c), Name: full}
			switch x := c.val.(type) {
			case map[string]any:
				walk(c, full, x)
				continue
			case string:
				s.Value = x
			case int64:
				s.Value = strconv.FormatInt(x, 10)
			case bool:
				s.Value = "0"
				if x {
					s.Value = "1"
				}
			default:
				d.errorf(d.at(c), "%s: want an integer or a string, not %s", full, kind(c.val))
				continue
			}
			out = append(out, s)
		}
	}
	walk(n, "", m)
	v.Set(reflect.ValueOf(out))
}

// label names a value as people write it: interface "lan0" would need more
// context than a path has, so it is the path: interface[0].mtu.
func label(n node) string {
	var b strings.Builder
	for i, p := range strings.Split(n.path, "\x1f") {
		if _, err := strconv.Atoi(p); err == nil && i > 0 {
			num, _ := strconv.Atoi(p)
			fmt.Fprintf(&b, "[%d]", num+1)
			continue
		}
		if i > 0 {
			b.WriteByte('.')
		}
		b.WriteString(quoteKey(p))
	}
	return b.String()
}

func quoteKey(k string) string {
	for _, c := range k {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-') {
			return strconv.Quote(k)
		}
	}
	if k == "" {
		return `""`
	}
	return k
}

// kind names a TOML value's type.
func kind(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case int64:
		return "an integer"
	case float64:
		return "a float"
	case bool:
		return "a boolean"
	case time.Time:
		return "a date"
	case map[string]any:
		return "a table"
	}
	return "a list"
}

// suggest is ", did you mean …?" where one of names is close to key.
func suggest(key string, names []string) string {
	best, bestAt := "", max(2, len(key)/3)+1
	for _, n := range names {
		if dist := distance(key, n); dist < bestAt {
			best, bestAt = n, dist
		}
	}
	if best != "" && bestAt < len(best) {
		return fmt.Sprintf("; did you mean %s?", best)
	}
	if len(names) > 0 && len(names) <= 16 {
		return "; known here: " + strings.Join(names, ", ")
	}
	return ""
}

// distance is the Levenshtein distance.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		prev := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := prev
			if a[i] != b[j] {
				cost++
			}
			prev = row[j+1]
			row[j+1] = min(cost, prev+1, row[j]+1)
		}
	}
	return row[len(b)]
}
