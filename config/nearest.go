package config

import "github.com/spf13/pflag"

// Names returns the names of all settings, in the order of the help text.
func Names() []string {
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	c := Default()
	bind(fs, &c)
	var names []string
	fs.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	return names
}

func known(key string) bool {
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	c := Default()
	bind(fs, &c)
	return fs.Lookup(key) != nil
}
