import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { layout, ports, type Ready } from '#shared/layout'
import { MUSTER } from './plane.ts'

/** Arguments of `env`: this Node without what the test runner adds to every Node that a test starts. */
export const PLAIN_NODE = ['-u', 'NODE_OPTIONS', process.execPath] as const

/** Longest that one command may take before it counts as hung, ms. */
const DEADLINE_MS = 60_000

export interface Ran {
  readonly status: number | null
  readonly stdout: string
  readonly stderr: string
}

/** A running `muster`: what it has said so far, and how to wait for more. */
export interface Running {
  readonly child: ChildProcess
  stderr(): string
  /** Resolves when stderr matches. @throws when the process ends, or the deadline passes, before it does */
  says(pattern: RegExp): Promise<void>
  readonly ended: Promise<Ran>
}

/** Starts `muster <args>`; it is killed at the end of the test if it is still there. */
export function startMuster(
  t: Test,
  args: readonly string[],
  { environment = {}, ...options }: { cwd?: string; environment?: Record<string, string> } = {},
): Running {
  const child = spawn('env', [...PLAIN_NODE, MUSTER, ...args], {
    ...options,
    env: { ...process.env, ...environment },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const texts = { stdout: '', stderr: '' }
  for (const name of ['stdout', 'stderr'] as const) {
    child[name].setEncoding('utf8').on('data', (text: string) => {
      texts[name] += text
    })
  }
  const ended = once(child, 'close', { signal: AbortSignal.timeout(DEADLINE_MS) }).then(([status]) => ({
    status: status as number | null, // the first argument of 'close'
    ...texts,
  }))
  ended.catch(() => child.kill('SIGKILL'))
  t.teardown(() => child.kill('SIGKILL'))
  const says = async (pattern: RegExp) => {
    const signal = AbortSignal.timeout(DEADLINE_MS)
    const gone = ended.then(() => 'gone' as const)
    while (!pattern.test(texts.stderr)) {
      const next = once(child.stderr, 'data', { signal }).then(() => 'more' as const)
      if ((await Promise.race([next, gone])) === 'gone' && !pattern.test(texts.stderr)) {
        throw new Error(`It ended without saying ${pattern}: ${texts.stderr}`)
      }
    }
  }
  return { child, stderr: () => texts.stderr, says, ended }
}

/** A base whose four ports are free, all below the range that the kernel takes outgoing ports from. */
export async function freePortBase(): Promise<number> {
  for (let base = 10_000 + (process.pid % 200) * 100; base < 31_000; base += 100) {
    const free = await Promise.all(Object.values(ports(base)).map(isFree))
    if (free.every((is) => is)) return base
  }
  throw new Error('no four free ports')
}

async function isFree(port: number): Promise<boolean> {
  const server = createServer().listen(port, '127.0.0.1')
  try {
    await once(server, 'listening')
    return true
  } catch {
    return false
  } finally {
    server.close()
  }
}

/** A directory that goes with the test. */
export function scratch(t: Test): string {
  const directory = mkdtempSync(join(tmpdir(), 'muster-test-'))
  t.teardown(() => rmSync(directory, { recursive: true, force: true }))
  return directory
}

/** `muster up` on a directory of its own, ready. */
export async function up(
  t: Test,
  options: { data?: string; portBase?: number; args?: readonly string[] } = {},
): Promise<Running & { data: string; portBase: number; ready: Ready }> {
  const data = options.data ?? join(scratch(t), 'data')
  const portBase = options.portBase ?? (await freePortBase())
  const more = options.args ?? ['--no-demo']
  const running = startMuster(t, ['up', '--data', data, '--port-base', String(portBase), ...more])
  await running.says(/Ctrl-C stops/)
  if (!existsSync(layout(data).ready)) throw new Error('there is no ready.json')
  const ready = JSON.parse(readFileSync(layout(data).ready, 'utf8')) as Ready // written by the program under test
  return { ...running, data, portBase, ready }
}

/** Stops it as Ctrl-C does, and waits for the end. */
export function interrupt({ child, ended }: Running): Promise<Ran> {
  child.kill('SIGINT')
  return ended
}
