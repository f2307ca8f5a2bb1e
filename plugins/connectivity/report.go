// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"time"
)

// Check is one question and its answer.
type Check struct {
	// Row is the line of the matrix, where the test has one.
	Row  string `json:"row,omitempty"`
	From string `json:"from"`
	To   string `json:"to"`
	// How is the protocol and family in words, Target the same for a machine.
	How    string `json:"how"`
	Target string `json:"target"`
	// Refused is true where nothing should come through.
	Refused bool `json:"refused,omitempty"`
	OK      bool `json:"ok"`
	// Reason of a failure.
	Reason string `json:"reason,omitempty"`
	// Drops that nodes told of between the two, for a failure.
	Drops []string `json:"drops,omitempty"`
	// Micros is how long the answer took, in microseconds.
	Micros int64 `json:"micros"`
}

// Name of the check in one line.
func (c Check) Name() string {
	verb := "reaches"
	if c.Refused {
		verb = "is kept from"
	}
	return fmt.Sprintf("%s %s %s by %s", c.From, verb, c.To, c.How)
}

// Test is one state of the policies with its checks.
type Test struct {
	Name  string `json:"name"`
	About string `json:"about"`
	// Error says why the test could not be made at all.
	Error   string  `json:"error,omitempty"`
	Seconds float64 `json:"seconds"`
	Checks  []Check `json:"checks"`
}

// Failed checks of the test.
func (t *Test) Failed() []Check {
	var all []Check
	for _, c := range t.Checks {
		if !c.OK {
			all = append(all, c)
		}
	}
	return all
}

// OK says that nothing failed.
func (t *Test) OK() bool { return t.Error == "" && len(t.Failed()) == 0 }

// Report is the outcome of a run.
type Report struct {
	OK       bool      `json:"ok"`
	Nodes    []string  `json:"nodes"`
	Families []int     `json:"families"`
	Image    string    `json:"image"`
	Started  time.Time `json:"started"`
	Seconds  float64   `json:"seconds"`
	Passed   int       `json:"passed"`
	Failed   int       `json:"failed"`
	Tests    []Test    `json:"tests"`
}

func (r *Report) add(t Test) {
	failed := len(t.Failed())
	r.Failed += failed
	r.Passed += len(t.Checks) - failed
	if t.Error != "" {
		r.Failed++
	}
	r.Tests = append(r.Tests, t)
}

type junitSuites struct {
	XMLName xml.Name     `xml:"testsuites"`
	Tests   int          `xml:"tests,attr"`
	Fails   int          `xml:"failures,attr"`
	Time    string       `xml:"time,attr"`
	Suites  []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name  string      `xml:"name,attr"`
	Tests int         `xml:"tests,attr"`
	Fails int         `xml:"failures,attr"`
	Time  string      `xml:"time,attr"`
	Cases []junitCase `xml:"testcase"`
}

type junitCase struct {
	Class   string        `xml:"classname,attr"`
	Name    string        `xml:"name,attr"`
	Time    string        `xml:"time,attr"`
	Failure *junitFailure `xml:"failure,omitempty"`
}

type junitFailure struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// WriteJUnit writes the report as machines that run tests read it.
func (r *Report) WriteJUnit(out io.Writer) error {
	seconds := func(s float64) string { return fmt.Sprintf("%.3f", s) }
	all := junitSuites{Tests: r.Passed + r.Failed, Fails: r.Failed, Time: seconds(r.Seconds)}
	for i := range r.Tests {
		t := &r.Tests[i]
		class := "connectivity." + t.Name
		suite := junitSuite{Name: t.Name, Tests: len(t.Checks), Fails: len(t.Failed()), Time: seconds(t.Seconds)}
		if t.Error != "" {
			suite.Tests++
			suite.Fails++
			suite.Cases = append(suite.Cases, junitCase{Class: class, Name: t.About, Time: seconds(0), Failure: &junitFailure{Message: t.Error}})
		}
		for _, c := range t.Checks {
			one := junitCase{Class: class, Name: c.Name(), Time: seconds(float64(c.Micros) / 1e6)}
			if !c.OK {
				one.Failure = &junitFailure{Message: c.Reason, Text: strings.Join(c.Drops, "\n")}
			}
			suite.Cases = append(suite.Cases, one)
		}
		all.Suites = append(all.Suites, suite)
	}
	if _, err := io.WriteString(out, xml.Header); err != nil {
		return err
	}
	enc := xml.NewEncoder(out)
	enc.Indent("", "  ")
	if err := enc.Encode(all); err != nil {
		return err
	}
	_, err := io.WriteString(out, "\n")
	return err
}
