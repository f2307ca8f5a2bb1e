// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/cli-runtime/pkg/genericclioptions"

	"github.com/kube-cilium/kube-cilium/internal/flow"
)

// output is -o: a table for people, wide or not, or one of kubectl's formats for machines.
type output struct {
	flags *genericclioptions.PrintFlags
}

func newOutput(cmd *cobra.Command) *output {
	o := &output{flags: genericclioptions.NewPrintFlags("").WithDefaultOutput("")}
	o.flags.AddFlags(cmd)
	f := cmd.Flags().Lookup("output")
	f.Usage = "Output format. One of: (" + strings.Join(o.names(), ", ") + ")."
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(o.names(), cobra.ShellCompDirectiveNoFileComp))
	return o
}

func (o *output) format() string { return *o.flags.OutputFormat }

// table is true when people read it.
func (o *output) table() bool { return o.format() == "" || o.wide() }

func (o *output) wide() bool { return o.format() == "wide" }

// validate refuses a format that does not exist before anything is asked.
func (o *output) validate() error {
	if o.table() {
		return nil
	}
	_, err := o.flags.ToPrinter()
	if genericclioptions.IsNoCompatiblePrinterError(err) {
		return fmt.Errorf("-o %q is not known: %s", o.format(), strings.Join(o.names(), ", "))
	}
	return err
}

// names are all formats.
func (o *output) names() []string { return append([]string{"wide"}, o.flags.AllowedFormats()...) }

// object prints a kind of Kubernetes, whose list or type is known to scheme.
func (o *output) object(out io.Writer, scheme *runtime.Scheme, obj runtime.Object) error {
	p, err := o.flags.WithTypeSetter(scheme).ToPrinter()
	if err != nil {
		return err
	}
	if o.format() == "name" && meta.IsListType(obj) {
		return meta.EachListItem(obj, func(item runtime.Object) error { return p.PrintObj(item, out) })
	}
	return p.PrintObj(obj, out)
}

// answerVersion is the version of what the plugin says in words of its own.
const answerVersion = "cli.kube-cilium.io/v1alpha1"

// answer prints an answer of the plugin's own as if it were an object, so that jsonpath and yaml work on it.
func (o *output) answer(out io.Writer, kind string, v any) error {
	if o.format() == "name" {
		return errors.New("-o name: this answer is no object of the cluster and has no name (take json, yaml or jsonpath)")
	}
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	fields := map[string]any{}
	if err := utiljson.Unmarshal(text, &fields); err != nil { // whole numbers stay whole
		return err
	}
	fields["apiVersion"], fields["kind"] = answerVersion, kind
	return o.object(out, runtime.NewScheme(), &unstructured.Unstructured{Object: fields})
}

// table lines up cells whose width is counted in characters, leaving out colours.
type table struct {
	out    io.Writer
	color  colors
	indent string
	rows   [][]string
}

func newTable(out io.Writer, color colors) *table { return &table{out: out, color: color} }

// row adds cells; whatever in them is not fit for a terminal becomes an escape, our own colours excepted.
func (t *table) row(cells ...string) {
	safe := make([]string, len(cells))
	for i, c := range cells {
		safe[i] = t.safeCell(c)
	}
	t.rows = append(t.rows, safe)
}

func (t *table) flush() error {
	var widths []int
	for _, row := range t.rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], width(c))
		}
	}
	for _, row := range t.rows {
		line := t.indent
		for i, c := range row {
			line += c
			if i < len(row)-1 {
				line += strings.Repeat(" ", widths[i]-width(c)+3)
			}
		}
		if _, err := fmt.Fprintln(t.out, strings.TrimRight(line, " ")); err != nil {
			return err
		}
	}
	return nil
}

const (
	codeRed    = "\x1b[31m"
	codeGreen  = "\x1b[32m"
	codeYellow = "\x1b[33m"
	codeReset  = "\x1b[0m"
)

// painted takes a cell of ours apart; code is "" for a plain one.
func painted(cell string) (code, text string) {
	for _, c := range []string{codeRed, codeGreen, codeYellow} {
		if rest, ok := strings.CutPrefix(cell, c); ok {
			if text, ok := strings.CutSuffix(rest, codeReset); ok {
				return c, text
			}
		}
	}
	return "", cell
}

func (t *table) safeCell(cell string) string {
	code, text := painted(cell)
	if code == "" || !t.color.on {
		return flow.Safe(cell)
	}
	return code + flow.Safe(text) + codeReset
}

func width(cell string) int {
	_, text := painted(cell)
	return utf8.RuneCountInString(text)
}

// colors paints for a terminal that wants it.
type colors struct{ on bool }

// newColors follows --color, NO_COLOR and whether out is a terminal.
func newColors(when string, out io.Writer) (colors, error) {
	switch when {
	case "always":
		return colors{on: true}, nil
	case "never":
		return colors{}, nil
	case "auto":
		f, ok := out.(*os.File)
		return colors{on: ok && os.Getenv("NO_COLOR") == "" && isatty.IsTerminal(f.Fd())}, nil
	}
	return colors{}, fmt.Errorf("--color %q is not known: auto, always or never", when)
}

func (c colors) paint(code, s string) string {
	if !c.on {
		return s
	}
	return code + s + codeReset
}

func (c colors) red(s string) string    { return c.paint(codeRed, s) }
func (c colors) yellow(s string) string { return c.paint(codeYellow, s) }

func (c colors) good(ok bool, s string) string {
	if ok {
		return c.paint(codeGreen, s)
	}
	return c.paint(codeRed, s)
}
