import { resolve } from 'node:path'
import t from 'tap'
import fc from '../support/properties.ts'
import { functionsOf, lineCount, median } from '../support/source-facts.ts'
import { type SourceFile, sourceTree } from '../support/source-tree.ts'

const files = sourceTree(resolve(import.meta.dirname, '../..'))
const code = files.filter(({ path }) => /\.(ts|mjs)$/.test(path))
const shipped = code.filter(({ path }) => !path.startsWith('test/'))

/** Flat tables and numbered recipes, which are clearer in one piece, and why each is one. */
const IN_ONE_PIECE: Record<string, string> = {
  'shared/admin-client.ts#openAdminClient': 'a table: one line a route',
  'broker/replica/replica-rows.ts#prepareReader': 'a table: one statement a row kind',
  'broker/replica/replica-rows.ts#prepareWriter': 'a table: one statement a row kind',
  'broker/store/session-rows.ts#prepareSessionRows': 'a table: one statement a row kind',
  'enrollment/plane.ts#openDeps': 'a recipe: what is opened, in order',
  'enrollment/registry/sqlite.ts#sqliteRegistry': 'a table: one line an intent',
}

t.test('a file has at most 300 lines, half of them at most 110', async (t) => {
  const long = shipped.filter((file) => lineCount(file) > 300)
  t.strictSame(
    long.map((file) => `${file.path}: ${lineCount(file)}`),
    [],
  )
  t.ok(median(shipped.map(lineCount)) <= 110, `the median is ${median(shipped.map(lineCount))}`)
})

t.test(
  'a file of tests has at most 600 lines: it is a list of cases, and each file costs a start',
  async (t) => {
    const long = code.filter((file) => file.path.startsWith('test/') && lineCount(file) > 600)
    t.strictSame(
      long.map((file) => `${file.path}: ${lineCount(file)}`),
      [],
    )
  },
)

t.test('a function has at most 40 lines, unless it is a table or a recipe', async (t) => {
  const facts = shipped.flatMap(functionsOf)
  const long = facts.filter(({ lines, path, name }) => lines > 40 && !(`${path}#${name}` in IN_ONE_PIECE))
  t.strictSame(
    long.map(({ path, name, lines }) => `${path} ${name}: ${lines}`),
    [],
  )
  const named = new Set(facts.map(({ path, name }) => `${path}#${name}`))
  t.strictSame(
    Object.keys(IN_ONE_PIECE).filter((name) => !named.has(name)),
    [],
    'the list of exceptions names nothing that is gone',
  )
  t.ok(median(facts.map(({ lines }) => lines)) <= 12)
})

/** Whose properties do not begin with the seed of all: a run of theirs would not be like the one before it. */
function ofOwnSeed(all: readonly SourceFile[]): string[] {
  const isOther = ({ path, text }: SourceFile) =>
    path !== 'test/support/properties.ts' &&
    (/from ['"]fast-check['"]|import\(['"]fast-check/.test(text) || /\bnumRuns\b[^}]*\bseed:/.test(text))
  return all.filter(isOther).map(({ path }) => path)
}

t.test('properties are tested with one seed, so that each run is like the one before it', async (t) => {
  t.strictSame(ofOwnSeed(code.filter(({ path }) => path !== 'test/architecture/facts.test.ts')), [])
  const planted = [
    "import fc from 'fast-check'",
    'fc.assert(all, { numRuns: 5, seed: 7 })',
    "import('fast-check')",
  ]
  t.equal(ofOwnSeed(planted.map((text) => ({ path: 'test/a.test.ts', text }))).length, planted.length)
  const draw = () => JSON.stringify(fc.sample(fc.array(fc.integer()), 20))
  t.equal(draw(), draw())
})

t.test('a long function is found in each form that it can have', async (t) => {
  const body = Array.from({ length: 41 }, (_, index) => `  step(${index}, () => {\n  })`).join('\n')
  const forms = {
    plain: `export async function plain(a: string): Promise<void> {\n${body}\n}\n`,
    arrow: `const arrow = async (a: string) => {\n${body}\n}\n`,
    wrapped: `function wrapped(\n  a: string,\n  b: string,\n): void {\n${body}\n}\n`,
    property: `const a = {\n  property: async (a: string) => {\n${body.replaceAll(/^/gm, '  ')}\n  },\n}\n`,
    '#method': `class A {\n  async #method(a: string): Promise<void> {\n${body.replaceAll(/^/gm, '  ')}\n  }\n}\n`,
  }
  for (const [name, text] of Object.entries(forms)) {
    const found = functionsOf({ path: 'a.ts', text }).filter(({ lines }) => lines > 40)
    t.match(found, [{ name }], name)
  }
})

t.test('no secret and no path of somebody’s machine is in the repository', async (t) => {
  const patterns = {
    'a private key': /-----BEGIN [A-Z ]*PRIVATE KEY-----\s*\n[A-Za-z0-9+/=\n]{60,}/,
    'a token': /\bmst_[A-Za-z0-9_-]{43,}/,
    'a cloud key': /\bAKIA[0-9A-Z]{16}\b/,
    'a home directory': /(?:\/home\/|\/Users\/)[a-z]+\//,
  }
  for (const [name, pattern] of Object.entries(patterns)) {
    t.strictSame(
      files.filter(({ text }) => pattern.test(text)).map(({ path }) => path),
      [],
      name,
    )
  }
})
