// SPDX-License-Identifier: Apache-2.0

package commandline

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Refuse makes a plugin say in one sentence what makes no sense, and where it is explained: a wrong flag, a wrong number of
// arguments, an unknown verb. To be called when root has all its verbs.
func Refuse(root *cobra.Command) {
	root.SetFlagErrorFunc(flagError)
	root.Flags().Bool("version", false, "Print the version of this plugin.") // cobra's own has the short form -v, kubectl's for verbosity
	refuseArguments(root)
}

func flagError(cmd *cobra.Command, err error) error {
	var number *strconv.NumError
	if invalid := (*pflag.InvalidValueError)(nil); errors.As(err, &invalid) && errors.As(err, &number) {
		kind := map[string]string{
			"int": "a whole number", "int32": "a whole number", "int64": "a whole number", "bool": "true or false",
			"uint": "a whole number from 0 on", "uint16": "a whole number from 0 on", "uint32": "a whole number from 0 on", "uint64": "a whole number from 0 on",
		}[invalid.GetFlag().Value.Type()]
		if kind != "" {
			err = fmt.Errorf("invalid argument %q for --%s: %s is wanted", invalid.GetValue(), invalid.GetFlag().Name, kind)
		}
	}
	return fmt.Errorf("%w (see %s --help)", err, cmd.CommandPath())
}

func refuseArguments(cmd *cobra.Command) {
	for _, verb := range cmd.Commands() {
		refuseArguments(verb)
	}
	check := cmd.Args
	if cmd.RunE == nil { // a group
		cmd.RunE = func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q for %q (see %s --help)", args[0], c.CommandPath(), c.CommandPath())
			}
			return c.Help()
		}
		check = cobra.ArbitraryArgs
	}
	if check == nil {
		check = cobra.NoArgs
	}
	cmd.Args = func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			if _, wanted, ok := strings.Cut(c.Use, " "); ok && !strings.Contains(err.Error(), c.CommandPath()) {
				err = fmt.Errorf("%s %s: %w", c.CommandPath(), wanted, err)
			}
			return fmt.Errorf("%w (see %s --help)", err, c.CommandPath())
		}
		return nil
	}
}
