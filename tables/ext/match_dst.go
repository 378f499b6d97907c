package ext

var matchDst = optionsMatch("dst", "Matches packets with a destination options header, by its length and options.", headerDestOpts)
