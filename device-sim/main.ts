import { randomBytes } from 'node:crypto'
import { isMusterError } from '#shared/errors'
import { writeFileDurably } from '#shared/files'
import { seededRandom } from './backoff.ts'
import { systemClock } from './clock.ts'
import { crashStep, type RunOptions, readArguments, SCENARIOS } from './config.ts'
import { openProgress } from './progress.ts'
import { type RunReport, summary } from './report.ts'
import { type RunDeps, runScenario } from './run-scenario.ts'
import { startPlane } from './throwaway-plane.ts'

/** `ok` is false. */
const CHECK_FAILED = 8
const UNREACHABLE = 7
const INTERRUPTED = 130

/** `muster sim …`, the arguments after `sim`; sets the exit code of the process. */
export async function run(argv: readonly string[]): Promise<void> {
  const intent = readArguments(argv, {
    stdout: (text) => process.stdout.write(text),
    stderr: (text) => process.stderr.write(text),
  })
  if (intent.verb === 'exit') process.exitCode = intent.code
  else if (intent.verb === 'list') listScenarios()
  else process.exitCode = await play(intent.options)
}

function listScenarios(): void {
  for (const { name, says } of SCENARIOS) process.stdout.write(`${name.padEnd(10)} ${says}\n`)
}

async function play(options: RunOptions): Promise<number> {
  const ending = openEnding()
  try {
    const report = await runScenario(await withPlane(options, ending), depsOf(ending))
    if (options.report) writeFileDurably(options.report, `${JSON.stringify(report, null, 2)}\n`)
    show(report, options)
    return report.outcome.ok ? 0 : CHECK_FAILED
  } catch (error) {
    if (!isMusterError(error)) throw error
    process.stderr.write(`${error.message}\n`)
    return error.code === 'unreachable' || error.code === 'unavailable' ? UNREACHABLE : 1
  } finally {
    await ending.end()
  }
}

async function withPlane(options: RunOptions, ending: Ending): Promise<RunOptions> {
  if (!options.selfContained) return options
  process.stderr.write('  starting a plane of its own\n')
  const random = seededRandom(randomBytes(8).toString('hex'))
  const plane = await startPlane({ random, environment: process.env, onSpawn: ending.add })
  return { ...options, data: plane.data }
}

function depsOf(ending: Ending): RunDeps {
  const step = crashStep(process.env)
  return {
    clock: systemClock,
    progress: openProgress(process.stderr, systemClock),
    runId: randomBytes(3).toString('hex'),
    signal: ending.signal,
    onEnd: ending.add,
    reached: (reachedStep) => {
      if (reachedStep === step) endAtOnce()
    },
  }
}

/** As a power cut would: no handler runs and nothing is flushed. */
function endAtOnce(): void {
  process.kill(process.pid, 'SIGKILL')
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0) // not one more instruction of the device
}

function show(report: RunReport, { json }: RunOptions): void {
  if (json) {
    for (const finding of report.findings) process.stderr.write(`  - ${finding}\n`)
    process.stdout.write(`${JSON.stringify(report.outcome)}\n`)
  } else process.stdout.write(summary(report))
}

interface Ending {
  readonly signal: AbortSignal
  add(undo: () => Promise<void> | void): void
  /** Undoes everything in reverse, once. */
  end(): Promise<void>
}

/** `disconnect`: the supervisor that started this process is gone. */
const ENDS = ['SIGINT', 'SIGTERM', 'disconnect'] as const

/** Undoes what a run has begun: at its end, and when a signal ends it. */
function openEnding(): Ending {
  const undos: (() => Promise<void> | void)[] = []
  const aborted = new AbortController()
  const end = async () => {
    for (let undo = undos.pop(); undo; undo = undos.pop()) {
      try {
        await undo()
      } catch (error) {
        complain(error)
      }
    }
  }
  const interrupt = () => {
    aborted.abort()
    void end().then(() => process.exit(INTERRUPTED)) // end() reports what fails and goes on
  }
  for (const event of ENDS) process.once(event, interrupt)
  return {
    signal: aborted.signal,
    add: (undo) => void undos.push(undo),
    end: async () => {
      await end()
      for (const event of ENDS) process.off(event, interrupt)
    },
  }
}

function complain(error: unknown): void {
  process.stderr.write(`Cannot clean up: ${error instanceof Error ? error.message : error}\n`)
}

if (import.meta.main) await run(process.argv.slice(2))
