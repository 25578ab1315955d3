package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"io/fs"
	"path"
	"strings"
)

// file is a Go file that somebody wrote; generated ones are not looked at.
type file struct {
	path  string
	test  bool
	lines int
	funcs []function
	// code holds the lines that say something: without comments, imports and spacing.
	code []codeLine
}

// function is a declared function or method. One that stands inside another one counts as a part of it.
type function struct {
	name   string
	line   int
	lines  int
	params int
}

// codeLine is a line with the spacing between its tokens made equal.
type codeLine struct {
	number int
	text   string
}

// read parses the Go files below root that are not generated, in the order of their paths. Directories that the go command does not look into are
// passed over.
func read(root fs.FS) ([]file, error) {
	var files []file
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			base := d.Name()
			if name != "." && (strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") || base == "testdata" || base == "vendor") {
				return fs.SkipDir
			}
			return nil
		}
		if path.Ext(name) != ".go" {
			return nil
		}
		source, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		f, generated, err := parse(name, source)
		if err == nil && !generated {
			files = append(files, f)
		}
		return err
	})
	return files, err
}

func parse(name string, source []byte) (f file, generated bool, err error) {
	set := token.NewFileSet()
	tree, err := parser.ParseFile(set, name, source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return file{}, false, fmt.Errorf("parse: %w", err)
	}
	if ast.IsGenerated(tree) {
		return file{}, true, nil
	}
	f = file{path: name, test: strings.HasSuffix(name, "_test.go"), lines: strings.Count(string(source), "\n")}
	imports := make(map[int]bool)
	for _, d := range tree.Decls {
		first, last := set.Position(d.Pos()).Line, set.Position(d.End()).Line
		switch d := d.(type) {
		case *ast.FuncDecl:
			f.funcs = append(f.funcs, function{name: funcName(d), line: first, lines: last - first + 1, params: d.Type.Params.NumFields()})
		case *ast.GenDecl:
			for line := first; d.Tok == token.IMPORT && line <= last; line++ {
				imports[line] = true
			}
		}
	}
	for _, line := range codeLines(source) {
		if !imports[line.number] {
			f.code = append(f.code, line)
		}
	}
	return f, false, nil
}

// funcName names a method by its receiver's type as well.
func funcName(d *ast.FuncDecl) string {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return d.Name.Name
	}
	receiver := d.Recv.List[0].Type
	if star, ok := receiver.(*ast.StarExpr); ok {
		receiver = star.X
	}
	switch generic := receiver.(type) {
	case *ast.IndexExpr:
		receiver = generic.X
	case *ast.IndexListExpr:
		receiver = generic.X
	}
	if name, ok := receiver.(*ast.Ident); ok {
		return name.Name + "." + d.Name.Name
	}
	return d.Name.Name
}

// codeLines joins the tokens of each line with one space.
func codeLines(source []byte) []codeLine {
	set := token.NewFileSet()
	f := set.AddFile("", -1, len(source))
	var s scanner.Scanner
	s.Init(f, source, nil, 0)
	var lines []codeLine
	for {
		pos, tok, literal := s.Scan()
		if tok == token.EOF {
			return lines
		}
		if tok == token.SEMICOLON && literal == "\n" {
			continue // The end of the line, which is no token of the source.
		}
		if literal == "" {
			literal = tok.String()
		}
		number := f.Line(pos)
		if n := len(lines); n > 0 && lines[n-1].number == number {
			lines[n-1].text += " " + literal
		} else {
			lines = append(lines, codeLine{number: number, text: literal})
		}
	}
}
