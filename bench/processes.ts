import { type ChildProcess, execFile, execFileSync, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { delimiter, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { MusterError } from '#shared/errors'
import type { BenchContext } from './harness.ts'

/** The server has one core to itself, the load the other ones. */
const SERVER_CORE = 0
const LOAD_CORE = 1
const STOP_DEADLINE_MS = 10_000

/** Programs that a bench calls, and the Debian package that each is in. */
const PACKAGES = {
  taskset: 'util-linux',
  cfssl: 'golang-cfssl',
  openssl: 'openssl',
  mosquitto: 'mosquitto',
  'nats-server': 'nats-server',
} as const
export type Program = keyof typeof PACKAGES

/** Where Debian puts servers, which not everybody has in PATH. */
const SERVER_PROGRAMS = ['/usr/sbin']

/** Where a program is. @throws MusterError unavailable, naming the package */
export function need(program: Program, path = process.env.PATH ?? ''): string {
  const found = [...path.split(delimiter), ...SERVER_PROGRAMS]
    .map((directory) => join(directory, program))
    .find((file) => existsSync(file))
  if (found !== undefined) return found
  throw new MusterError(
    'unavailable',
    `Cannot run the bench: "${program}" is not installed; fix: apt-get install ${PACKAGES[program]}`,
  )
}

/** Moves this process, which makes the load, to a core of its own. @throws MusterError unavailable */
export function pinLoad(): void {
  const taskset = need('taskset')
  if (availableParallelism() < 2) {
    throw new MusterError(
      'unavailable',
      'Cannot run the bench: server and load need a core each, and there is one',
    )
  }
  execFileSync(taskset, ['--all-tasks', '--cpu-list', '--pid', String(LOAD_CORE), String(process.pid)], {
    stdio: 'ignore',
  })
}

export interface Server {
  readonly child: ChildProcess
  /** utime + stime of it and its children so far, s. */
  cpuS(): number
  /** Resident memory, octets. */
  residentOctets(): number
  /** Ends it before the bench does. */
  stop(): Promise<void>
}

/** Starts a server on its core; it ends with the bench. */
export function startServer(
  command: readonly string[],
  { context, cwd, ipc = false }: { context: BenchContext; cwd: string; ipc?: boolean },
): Server {
  const child = spawn(need('taskset'), ['--cpu-list', String(SERVER_CORE), ...command], {
    cwd,
    stdio: ['ignore', 'ignore', 'pipe', ...(ipc ? (['ipc'] as const) : [])],
  })
  child.stderr?.on('data', () => {}) // read, so that the server is never held up by a full pipe
  context.ended(() => stop(child))
  const pid = child.pid ?? 0
  return {
    child,
    cpuS: () => cpuSeconds(pid),
    residentOctets: () => residentOf(pid),
    stop: () => stop(child),
  }
}

/** Resolves when it says so over IPC, with what it says. @throws MusterError unavailable when it ends instead */
export async function ready({ child }: Server, name: string): Promise<unknown> {
  const exited = once(child, 'exit').then(([code]) => {
    throw new MusterError('unavailable', `Cannot run the bench: ${name} ended with ${code}`)
  })
  exited.catch(() => {}) // after it was ready, its end is no news
  const [message] = await Promise.race([once(child, 'message'), exited])
  return message
}

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const exited = once(child, 'exit')
  const alarm = setTimeout(() => child.kill('SIGKILL'), STOP_DEADLINE_MS)
  child.kill('SIGTERM')
  await exited
  clearTimeout(alarm)
}

let ticksPerSecond = 0

/** utime + stime of a process and all below it, s (proc(5): fields 14 and 15 of stat). */
export function cpuSeconds(pid: number): number {
  ticksPerSecond ||= Number(execFileSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }))
  return (
    treeOf(pid).reduce((sum, each) => sum + ticksOf(readFileSync(`/proc/${each}/stat`, 'utf8')), 0) /
    ticksPerSecond
  )
}

/** The name of the program may hold spaces and brackets: what counts begins after the last bracket. */
export function ticksOf(stat: string): number {
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return Number(fields[11]) + Number(fields[12])
}

function treeOf(pid: number): number[] {
  const children = readdirSync(`/proc/${pid}/task`).flatMap((task) =>
    readFileSync(`/proc/${pid}/task/${task}/children`, 'utf8').split(' ').filter(Boolean).map(Number),
  )
  return [pid, ...children.flatMap(treeOf)]
}

function residentOf(pid: number): number {
  const [, kibibytes] = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? []
  return Number(kibibytes) * 1024
}

/** The first line of what a program says about its version; some say it as a part of their help, and call that an error. */
export function versionOf(program: Program, args: readonly string[]): string {
  const { stdout } = spawnSync(need(program), [...args], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  return stdout.split('\n')[0]?.trim() ?? ''
}

/** Runs a program on the server's core to its end, and returns what it wrote. */
export async function runPinned(command: readonly string[], cwd: string): Promise<string> {
  const { stdout } = await promisify(execFile)(
    need('taskset'),
    ['--cpu-list', String(SERVER_CORE), ...command],
    { cwd },
  )
  return stdout
}

/** A program of ours beside this file: TypeScript in a clone, JavaScript in the package. */
export function programBeside(url: string, name: string): string {
  return fileURLToPath(new URL(url.endsWith('.ts') ? `${name}.ts` : `${name}.js`, url))
}
