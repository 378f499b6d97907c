package ext

var matchHBH = optionsMatch("hbh", "Matches packets with a hop-by-hop options header, by its length and options.", headerHopByHop)
