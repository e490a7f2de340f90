import { readdirSync, readFileSync } from 'node:fs'
import { join, relative, sep } from 'node:path'

/** What is not the project's own text: what git ignores, and what the platform or npm writes. */
const SKIPPED = new Set(['node_modules', '.git', '.tap', 'data', 'dist', 'coverage', 'package-lock.json'])

export interface SourceFile {
  /** Relative to the root of the tree, with `/`. */
  readonly path: string
  readonly text: string
}

/** Every text file of a tree, sorted by path. What is skipped is not entered: others write there meanwhile. */
export function sourceTree(root: string): SourceFile[] {
  return filesBelow(root)
    .map((file) => ({
      path: relative(root, file).split(sep).join('/'),
      text: readFileSync(file, 'utf8'),
    }))
    .sort((a, b) => (a.path < b.path ? -1 : 1))
}

function filesBelow(directory: string): string[] {
  return readdirSync(directory, { withFileTypes: true })
    .filter(({ name }) => !SKIPPED.has(name))
    .flatMap((entry) => {
      const path = join(directory, entry.name)
      if (entry.isDirectory()) return filesBelow(path)
      return entry.isFile() ? [path] : []
    })
}

/** The module specifiers that a file imports or re-exports, static and dynamic. */
export function importsOf(file: SourceFile): string[] {
  const specifiers = /^\s*(?:import|export|\})[^'"\n;]*?['"]([^'"\n]+)['"]|\bimport\(\s*['"]([^'"\n]+)['"]/gm
  return [...file.text.matchAll(specifiers)].flatMap((match) => match[1] ?? match[2] ?? [])
}
