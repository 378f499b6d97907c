// Package ipset holds IP sets as ipset(8) knows them: sets of addresses,
// networks, ports, interfaces and their combinations that rules ask with one
// lookup.
//
//	sets := ipset.New(nil)
//	err := sets.Create("allowed", "hash:net", ipset.Options{Family: packet.IPv4})
//	set := sets.Get("allowed")
//	err = set.AddPrefix(netip.MustParsePrefix("192.0.2.0/24"), 5*time.Minute)
//	set.Contains(netip.MustParseAddr("192.0.2.7"))
//
// A Ref is a name's place: rules hold one, and Swap changes the set behind it
// without a moment in which there is none. A set that a rule or a list refers to
// cannot be destroyed or renamed.
//
// Lookups take no lock and do not allocate. Whatever changes a set holds the
// set's lock; a lookup sees an element before or after the change. A set of plain
// networks of many lengths has a trie beside its hash table, and one of many IPv4
// networks a flat table (flat.go), so that the lookup takes as long with a million
// networks as with ten; while a set is being filled, the lookup goes through the
// lengths one by one, as Linux does.
package ipset
