package conntrack

// Classes of SIP's expectations.
const (
	sipSignalling = iota
	sipAudio
	sipVideo
	sipImage
)

var sipClasses = []ExpectPolicy{
	sipSignalling: {"signalling", 1, 180}, sipAudio: {"audio", 4, 180}, sipVideo: {"video", 4, 180}, sipImage: {"image", 2, 180},
}
