import { posix } from 'node:path'
import { importsOf, type SourceFile, sourceTree } from './source-tree.ts'

/** Folders that are services: each knows itself and `shared`, never another. */
const SERVICES = ['broker', 'enrollment', 'device-sim', 'operator']

/** Packages that exactly one file of ours may know, so that they can be exchanged in one place. */
export const WRAPPED = [
  'aedes',
  'mqtt',
  'better-sqlite3',
  '@peculiar/x509',
  'koffi',
  '@prometheus-io/client',
  'ws',
  'jose',
]

/** Files of enrollment that put everything together, and so know everything. */
const WIRING = ['main.ts', 'plane.ts', 'maintenance.ts', 'http']

/** Where HTTP begins; a use case has no business there. */
const HTTP = ['node:http', 'node:https', 'fastify']

/** Every violation of the import table of docs/architecture.md in the tree at `root`, one sentence each. */
export function importViolations(root: string): string[] {
  const files = sourceTree(root).filter(({ path }) => /\.(ts|mjs)$/.test(path) && !path.startsWith('test/'))
  return [
    ...files.flatMap((file) => [...crossings(file), ...layering(file), ...environment(file)]),
    ...WRAPPED.flatMap((name) => sharedWrapping(files, name)),
  ]
}

/** Which of our files import a package, by itself or by a path inside it. */
export function importersOf(root: string, name: string): string[] {
  return importers(
    sourceTree(root).filter(({ path }) => path.endsWith('.ts') && !path.startsWith('test/')),
    name,
  )
}

function importers(files: readonly SourceFile[], name: string): string[] {
  return files
    .filter((file) =>
      importsOf(file).some((specifier) => specifier === name || specifier.startsWith(`${name}/`)),
    )
    .map(({ path }) => path)
}

function sharedWrapping(files: readonly SourceFile[], name: string): string[] {
  const paths = importers(files, name)
  return paths.length > 1 ? [`${name} is imported by ${paths.join(' and ')}: only one file may`] : []
}

/** The path in the tree that a specifier means; null for a package. */
function target(file: SourceFile, specifier: string): string | null {
  if (specifier.startsWith('#shared/')) return specifier.slice(1)
  return specifier.startsWith('.') ? posix.join(posix.dirname(file.path), specifier) : null
}

function crossings(file: SourceFile): string[] {
  const [folder = ''] = file.path.split('/')
  if (folder !== 'shared' && !SERVICES.includes(folder)) return []
  const may = folder === 'shared' ? ['shared'] : [folder, 'shared']
  return importsOf(file)
    .map((specifier) => target(file, specifier))
    .filter((path) => path !== null && !may.includes(path.split('/')[0] ?? ''))
    .map((path) => `${file.path} imports ${path}: ${folder} may import ${may.join(' and ')} only`)
}

/** Inside enrollment: main -> http -> use case -> ca, registry's port. */
function layering(file: SourceFile): string[] {
  const [folder, inner = '', deeper] = file.path.split('/')
  if (folder !== 'enrollment' || WIRING.includes(inner)) return []
  const isUseCase = deeper === undefined && inner !== 'config.ts'
  const layer = isUseCase ? 'a use case' : `enrollment/${inner}`
  return importsOf(file)
    .map((specifier) => target(file, specifier) ?? specifier)
    .filter(
      (path) =>
        path.startsWith('enrollment/http/') ||
        path === 'enrollment/plane.ts' ||
        (isUseCase &&
          path.startsWith('enrollment/registry/') &&
          path !== 'enrollment/registry/registry.ts') ||
        HTTP.includes(path) ||
        (!isUseCase && /^enrollment\/[^/]+$/.test(path) && !path.endsWith('config.ts')),
    )
    .map((path) => `${file.path} imports ${path}: ${layer} may not`)
}

/** Only the start of a process reads its environment; everything else is told. */
function environment(file: SourceFile): string[] {
  const [folder = '', name] = [file.path.split('/')[0], posix.basename(file.path)]
  const isChecked = folder === 'shared' || SERVICES.includes(folder)
  if (!isChecked || name === 'main.ts' || name === 'config.ts') return []
  return /\bprocess\s*\.\s*env\b|\{[^}]*\benv\b[^}]*\}\s*=\s*process\b|import\s*\{[^}]*\benv\b[^}]*\}\s*from\s*['"](?:node:)?process/.test(
    file.text,
  )
    ? [`${file.path} reads process.env: only main.ts and config.ts may`]
    : []
}
