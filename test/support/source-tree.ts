import { readdirSync, readFileSync } from 'node:fs'
import { join, relative, sep } from 'node:path'

/** What is not the project's own text: what git ignores, and what the platform or npm writes. */
const SKIPPED = new Set(['node_modules', '.git', '.tap', 'data', 'dist', 'coverage', 'package-lock.json'])

export interface SourceFile {
  /** Relative to the root of the tree, with `/`. */
  readonly path: string
  readonly text: string
}

/** Every text file of a tree, sorted by path. */
export function sourceTree(root: string): SourceFile[] {
  return readdirSync(root, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(root, join(entry.parentPath, entry.name)).split(sep).join('/'))
    .filter((path) => !path.split('/').some((part) => SKIPPED.has(part)))
    .sort()
    .map((path) => ({ path, text: readFileSync(join(root, path), 'utf8') }))
}

/** The module specifiers that a file imports or re-exports, static and dynamic. */
export function importsOf(file: SourceFile): string[] {
  const specifiers = /^\s*(?:import|export|\})[^'"\n;]*?['"]([^'"\n]+)['"]|\bimport\(\s*['"]([^'"\n]+)['"]/gm
  return [...file.text.matchAll(specifiers)].flatMap((match) => match[1] ?? match[2] ?? [])
}
