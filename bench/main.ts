import { Command, CommanderError } from 'commander'
import { isMusterError, MusterError } from '#shared/errors'
import { authz } from './authz.ts'
import { crl } from './crl.ts'
import { enrollscale } from './enrollscale.ts'
import { connect, resume } from './handshakes.ts'
import {
  type Bench,
  type BenchContext,
  type Comparison,
  type Fact,
  MIN_RUNS,
  type Result,
  shown,
} from './harness.ts'
import { issue } from './issue.ts'
import { memory } from './memory.ts'
import { ocsp } from './ocsp.ts'
import { pinLoad } from './processes.ts'
import { publish } from './publish.ts'

const BENCHES: readonly Bench[] = [issue, crl, ocsp, enrollscale, connect, resume, memory, publish, authz]

/** Exit codes, as those of the operator's commands: usage, a peer is missing or a server does not start. */
const USAGE = 2
const UNREACHABLE = 7
const INTERRUPTED = 130

const QUICK = 0.1

/** `muster bench …`, the arguments after `bench`; sets the exit code of the process. */
export async function run(argv: readonly string[]): Promise<void> {
  try {
    await programOf().parseAsync([...argv], { from: 'user' })
  } catch (error) {
    if (error instanceof CommanderError) process.exitCode = error.exitCode === 0 ? 0 : USAGE
    else if (isMusterError(error)) {
      process.stderr.write(`${error.message}\n`)
      process.exitCode = error.code === 'invalid_request' ? USAGE : UNREACHABLE
    } else throw error
  }
}

function programOf(): Command {
  const program = new Command('muster bench')
    .description("measures Muster beside its peers, per second of the server's processor")
    .exitOverride()
  program
    .command('list')
    .description('the benches')
    .action(() => {
      for (const { name, says } of BENCHES) process.stdout.write(`${name.padEnd(12)} ${says}\n`)
    })
  program
    .argument('<name>', 'one of `muster bench list`')
    .option('--json', 'nothing on stdout but the line with the result')
    .option('--runs <n>', 'runs that count, at least 5', String(MIN_RUNS))
    .option('--effort <factor>', 'share of the usual work in each run', '1')
    .option('--quick', 'a look at it, no figure: --effort 0.1')
    .action(async (name: string, options: BenchOptions) => {
      await play(findBench(name), options)
    })
  return program
}

interface BenchOptions {
  readonly json?: boolean
  readonly runs: string
  readonly effort: string
  readonly quick?: boolean
}

/** @throws MusterError invalid_request */
function findBench(name: string): Bench {
  const bench = BENCHES.find((each) => each.name === name)
  if (bench !== undefined) return bench
  const names = BENCHES.map((each) => each.name).join(', ')
  throw new MusterError(
    'invalid_request',
    `Cannot run the bench "${name}": there is none of that name; fix: one of ${names}`,
  )
}

async function play(bench: Bench, options: BenchOptions): Promise<void> {
  const undos: (() => Promise<void> | void)[] = []
  const end = async () => {
    for (let undo = undos.pop(); undo; undo = undos.pop()) await undo()
  }
  const interrupt = () => void end().finally(() => process.exit(INTERRUPTED))
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, interrupt)
  try {
    const context = contextOf(options, (undo) => void undos.push(undo))
    pinLoad()
    const result: Result = { schemaVersion: 1, name: bench.name, ...(await bench.run(context)) }
    if (!options.json) process.stdout.write(tableOf(result))
    process.stdout.write(`${JSON.stringify(result)}\n`)
  } finally {
    await end()
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.off(signal, interrupt)
  }
}

/** @throws MusterError invalid_request */
function contextOf({ runs, effort, quick }: BenchOptions, ended: BenchContext['ended']): BenchContext {
  const [times, share] = [Number(runs), quick ? QUICK : Number(effort)]
  if (!Number.isSafeInteger(times) || times < MIN_RUNS || times > 1_000) {
    throw new MusterError(
      'invalid_request',
      `Cannot run it "${runs}" times: at least ${MIN_RUNS}, so that there is a median`,
    )
  }
  if (!(share > 0 && share <= 100)) {
    throw new MusterError('invalid_request', `Cannot use the effort "${effort}": a number above 0`)
  }
  return { runs: times, effort: share, say: (text) => void process.stderr.write(`${text}\n`), ended }
}

/** For people: both sides, the ratio, the versions and the commands. */
export function tableOf(result: Result): string {
  const also = Object.entries({ ...result.patterns, ...result.also })
  const parts: [string, Comparison][] = [[result.name, result], ...also]
  const compared = parts.map(([title, comparison]) => `${title}\n${linesOf(comparison)}\n`).join('')
  return `${compared}${Object.entries(result.facts ?? {})
    .map(factLine)
    .join('')}`
}

function factLine([name, { value, unit, most }]: [string, Fact]): string {
  const beside = most === undefined ? '' : `   at most ${most} ${unit}`
  return `  ${name.padEnd(40)} ${shown(value).padStart(10)} ${unit}${beside}\n`
}

function linesOf({ ours, peers, unit, ratios }: Comparison): string {
  const lines = [ours, ...peers].flatMap((figure) => {
    const ratio = ratios[figure.name]
    const beside = ratio === undefined ? '' : `   ours is ${ratio}x this`
    return [
      `  ${figure.name.padEnd(40)} ${shown(figure.value).padStart(10)} ${unit}${beside}`,
      `    ${figure.version}; ${figure.command}`,
    ]
  })
  return `${lines.join('\n')}\n`
}
