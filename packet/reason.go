package packet

// Reason names why a packet was dropped. The name is the counter, the trace
// line and the documentation entry. Zero means "not dropped".
type Reason uint16

// MaxReasons bounds the registry; workers keep an array of counters this long.
const MaxReasons = 256

type reason struct{ name, doc string }

var reasons = []reason{{"none", "not dropped"}}

// NewReason registers a drop reason; called from package-level variables only.
// Two packages that drop for the same reason share it: the name decides.
func NewReason(name, doc string) Reason {
	for i := range reasons {
		if reasons[i].name == name {
			return Reason(i)
		}
	}
	if len(reasons) == MaxReasons {
		panic("packet: too many drop reasons")
	}
	reasons = append(reasons, reason{name, doc})
	return Reason(len(reasons) - 1)
}

// NumReasons is the count of registered reasons, "none" included.
func NumReasons() int { return len(reasons) }

// String is the reason's name, such as "ip.ttl_expired".
func (r Reason) String() string { return reasons[r].name }

// Doc is one sentence for people.
func (r Reason) Doc() string { return reasons[r].doc }
