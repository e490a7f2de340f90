import { type Command, CommanderError } from 'commander'
import t from 'tap'
import { REFUSALS } from '#shared/refusals'
import { programOf } from '../../operator/commands/programs.ts'
import { buildProgram } from '../../operator/program.ts'

/** Commands in backticks, with what stands for a value filled in. */
function commandsIn(fix: string): string[][] {
  return [...fix.matchAll(/`muster ([^`]+)`/g)].map(([, words = '']) =>
    words.replaceAll(/<[\w-]+>/g, '1').split(' '),
  )
}

/** What is left of the words behind the command that they name. */
function behindCommand(words: readonly string[]): readonly string[] {
  let command: Command = buildProgram()
  for (const [at, word] of words.entries()) {
    const next = command.commands.find((one) => one.name() === word)
    if (next === undefined) return words.slice(at)
    command = next
  }
  return []
}

/** Null when the CLI can read it. One that is only named, without any argument, has to exist. */
async function faultIn(words: readonly string[]): Promise<string | null> {
  if (behindCommand(words).length === 0) return null
  if (programOf(words) !== null) {
    const options = buildProgram().commands.find((one) => one.name() === words[0])?.options ?? []
    const unknown = (word: string) =>
      word.startsWith('--') && !options.some(({ long }) => long === word.split('=')[0])
    return words.find(unknown) ?? null
  }
  try {
    await buildProgram().parseAsync([...words], { from: 'user' }) // its verbs do nothing
    return null
  } catch (error) {
    return error instanceof CommanderError ? error.message : null
  }
}

t.test('the CLI can read every command in the fix of a refusal, arguments and options too', async (t) => {
  for (const [code, { fix }] of Object.entries(REFUSALS)) {
    for (const words of commandsIn(fix))
      t.equal(await faultIn(words), null, `${code}: muster ${words.join(' ')}`)
  }
})

t.test('a command that the CLI cannot read is found', async (t) => {
  const wrong = [
    'device reissue d1 d2',
    'device reissu d1',
    'release h1 --force',
    'broker --limits a=1',
    'nothing',
  ]
  for (const words of wrong) t.type(await faultIn(words.split(' ')), 'string', words)
})
