import { existsSync, readFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import t from 'tap'
import { REFUSALS } from '#shared/refusals'
import { buildProgram } from '../../operator/program.ts'
import { refusalsPage } from '../../tools/refusals-page.ts'
import { sourceTree } from '../support/source-tree.ts'

const repository = resolve(import.meta.dirname, '../..')
const read = (path: string) => readFileSync(join(repository, path), 'utf8')
const pages = sourceTree(repository).filter(({ path }) => path.endsWith('.md'))

t.test('docs/refusals.md is the table of refusals, no more and no less', async (t) => {
  const page = read('docs/refusals.md')
  t.equal(page, refusalsPage(), 'run: node tools/refusals-page.ts')
  const headings = [...page.matchAll(/^### (R-[A-Z-]+)$/gm)].map((match) => match[1])
  t.strictSame(headings.toSorted(), Object.keys(REFUSALS).toSorted())
})

t.test('a refusal that a page names is in the table', async (t) => {
  const known = new Set<string>(Object.keys(REFUSALS))
  for (const { path, text } of pages) {
    const unknown = [...text.matchAll(/\bR-[A-Z]{3}[A-Z-]*[A-Z]\b/g)].map(([code]) => code)
    t.strictSame(
      unknown.filter((code) => !known.has(code)),
      [],
      path,
    )
  }
})

t.test('every command that a page names is one that the program has', async (t) => {
  for (const { path, text } of pages) {
    t.strictSame(
      commandsIn(text).filter((command) => !exists(command)),
      [],
      path,
    )
  }
})

t.test('every command in the fixes of the refusals is one that the program has', async (t) => {
  for (const [code, { fix }] of Object.entries(REFUSALS)) {
    t.strictSame(
      commandsIn(fix).filter((command) => !exists(command)),
      [],
      code,
    )
  }
})

t.test('the README names every command that the program has', async (t) => {
  const named = commandsIn(read('README.md')).map((words) => words.split(' ')[0])
  const missing = buildProgram()
    .commands.map((command) => command.name())
    .filter((name) => !['help', 'version', 'plan', 'operator'].includes(name) && !named.includes(name))
  t.strictSame(missing, [])
})

t.test('every link between the pages leads to a file', async (t) => {
  for (const { path, text } of pages) {
    const links = [...text.matchAll(/\]\((?!https?:|mailto:|#)([^)#\s]+)/g)].map((match) => match[1] ?? '')
    t.strictSame(
      links.filter((link) => !existsSync(join(repository, dirname(path), link))),
      [],
      path,
    )
  }
})

/** The words after `muster` in a text, as far as they are command names: `token create`, `hold`. `a|b` is two commands. */
function commandsIn(text: string): string[] {
  return [
    ...text.matchAll(/(?:`|npx |^|\$\(npx )muster ([a-z]+(?: [a-z][a-z-]*(?:\\?\|[a-z][a-z-]*)*)?)/gm),
  ].flatMap((match) => {
    const [noun = '', verbs = ''] = (match[1] ?? '').split(' ')
    return verbs === '' ? [noun] : verbs.split(/\\?\|/).map((verb) => `${noun} ${verb}`)
  })
}

/** True when the words name a command, and for one with subcommands also a subcommand. */
function exists(words: string): boolean {
  const [noun, verb] = words.split(' ')
  const command = buildProgram().commands.find((one) => one.name() === noun)
  if (command === undefined) return false
  if (verb === undefined || command.commands.length === 0) return true
  return command.commands.some((one) => one.name() === verb)
}
