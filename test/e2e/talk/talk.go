// SPDX-License-Identifier: Apache-2.0

// Package talk is what the end-to-end tests and their prober say to one another about conversations: which are to be held,
// and what became of each. Both are lists in JSON, the answers in the order of the questions.
package talk

// Conversation is one connection whose every packet is known beforehand, so that somebody can say what must be told of it.
type Conversation struct {
	// Protocol is tcp, udp or icmp.
	Protocol string `json:"protocol"`
	Host     string `json:"host"`
	// Port of the other side; From is ours, or the echo's identifier.
	Port uint16 `json:"port,omitempty"`
	From uint16 `json:"from"`
	// End is how it ends: close (both say so), reset (ours breaks it off), closed (nobody listens there), silence (no answer
	// ever comes). What is not TCP knows only silence, or else an answer.
	End string `json:"end"`
	// Rounds are questions, each with its answer unless there is silence. An echo has one.
	Rounds int `json:"rounds"`
}

// Outcome is what became of a conversation.
type Outcome struct {
	// Error: it did not go as it should.
	Error string `json:"error,omitempty"`
	// Void: it took so long that the kernel may have sent something again, or told of it again. It says nothing.
	Void bool `json:"void,omitempty"`
}
