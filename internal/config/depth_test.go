package config

import (
	"strings"
	"testing"
)

func TestTooDeep(t *testing.T) {
	deep := strings.Repeat("[", 200_000)
	if _, _, err := Parse("x.toml", []byte("\na = "+deep)); err == nil || err.Error() != "x.toml:2:105: arrays and tables in each other, more than 100 deep" {
		t.Errorf("%v", err)
	}
	for _, ok := range []string{
		"", "# " + deep, "a = '" + deep + "'", `a = "\"` + deep + `"`, "a = '''\n" + deep + "''''\n# x", `a = """` + "\n\\\"" + deep + `"""""`,
		"a = [" + strings.Repeat("1.5, ", 200) + "1]", strings.Repeat("a.b = 1\n", 200), strings.Repeat("# a.b\n", 200),
		strings.Repeat("a = [[]]\n", 200), "a = '", "a = \"\\", "'''",
	} {
		if at := tooDeep([]byte(ok)); at >= 0 {
			t.Errorf("%.20q: %d", ok, at)
		}
	}
	for _, bad := range []string{"a = '''x'''" + deep, "a = ''" + deep, `a = """"x"""""` + deep, "a = 'x\n" + deep, "# x\n" + deep, strings.Repeat("{a=[", 60),
		strings.Repeat("a.", 101) + "b = 1", "[" + strings.Repeat("a.", 101) + "b]"} {
		if tooDeep([]byte(bad)) < 0 {
			t.Errorf("%.20q passes", bad)
		}
	}
}
