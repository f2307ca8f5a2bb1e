// SPDX-License-Identifier: Apache-2.0

package commandline

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// Args are the arguments of a plugin that may have been called as its completion helper, kubectl_complete-NAME: then
// they are what the shell wants completed.
func Args(argv []string) []string {
	if strings.HasPrefix(filepath.Base(argv[0]), "kubectl_complete-") {
		return append([]string{cobra.ShellCompRequestCmd}, argv[1:]...)
	}
	return argv[1:]
}

// Completion is the command that writes completion scripts and installs kubectl's helper; plugin is its file's name,
// such as kubectl-cilium.
func Completion(plugin string, out, remarks io.Writer) *cobra.Command {
	name := strings.TrimPrefix(plugin, "kubectl-")
	cmd := &cobra.Command{
		Use:   "completion bash|zsh|fish|powershell|kubectl",
		Short: "Write a completion script for a shell, or install the helper that kubectl asks",
		Long: "Write a completion script for a shell, or install the helper that kubectl asks.\n\n" +
			"kubectl (1.26 and later) completes plugins by itself where it finds an executable kubectl_complete-" + name + " on the\n" +
			"PATH: completion kubectl --install puts one beside the plugin. The scripts of the shells complete " + plugin + ".",
		Example: fmt.Sprintf(`  # Let kubectl complete kubectl %[1]s
  kubectl %[1]s completion kubectl --install

  # In the running bash, for %[2]s
  source <(kubectl %[1]s completion bash)`, name, plugin),
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"bash", "zsh", "fish", "powershell", "kubectl"},
	}
	var install bool
	var dir string
	cmd.Flags().BoolVar(&install, "install", false, "With kubectl: write the helper instead of printing it.")
	cmd.Flags().StringVar(&dir, "dir", "", "With --install: the folder for it; beside this plugin unless said.")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		root := cmd.Root()
		switch args[0] {
		case "bash":
			return root.GenBashCompletionV2(out, true)
		case "zsh":
			return root.GenZshCompletion(out)
		case "fish":
			return root.GenFishCompletion(out, true)
		case "powershell":
			return root.GenPowerShellCompletionWithDesc(out)
		}
		helper := "#!/bin/sh\n# Asked by kubectl for completions of kubectl " + name + ".\nexec " + plugin + " " + cobra.ShellCompRequestCmd + " \"$@\"\n"
		if !install {
			_, err := io.WriteString(out, helper)
			return err
		}
		path, err := installHelper(dir, "kubectl_complete-"+name, helper)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintln(remarks, "installed", path)
		return nil
	}
	return cmd
}

func installHelper(dir, file, content string) (string, error) {
	if dir == "" {
		self, err := os.Executable()
		if err != nil {
			return "", err
		}
		dir = filepath.Dir(self)
	}
	path := filepath.Join(dir, file)
	tmp, err := os.CreateTemp(dir, "."+file+"-*")
	if err != nil {
		return "", fmt.Errorf("install %s: %w", file, err)
	}
	_, err = io.WriteString(tmp, content)
	if err := errors.Join(err, tmp.Chmod(0o755), tmp.Close()); err != nil {
		return "", errors.Join(fmt.Errorf("install %s: %w", file, err), os.Remove(tmp.Name()))
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return "", errors.Join(fmt.Errorf("install %s: %w", file, err), os.Remove(tmp.Name()))
	}
	return path, nil
}
