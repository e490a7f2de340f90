/** `muster enrollment` in a process of its own, which a signal or a fault of the disk can hit at any instruction. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import type { Test } from 'tap'
import { type AdminClient, openAdminClient, readOperatorProfile } from '#shared/admin-client'
import { layout, ports } from '#shared/layout'
import { openTestClient, type TestClient } from './https.ts'
import { PLAIN_NODE } from './muster.ts'
import { MUSTER } from './plane.ts'

/** What is waited for here takes seconds; longer than this it hangs, ms. */
const DEADLINE_MS = 120_000

export interface EnrollmentPlace {
  readonly data: string
  readonly portBase: number
  readonly args?: readonly string[]
  /** A command that runs the service, such as `strace -D …`; the service keeps its process id. */
  readonly under?: readonly string[]
}

export interface EnrollmentProcess {
  readonly child: ChildProcess
  /** Resolves when it serves, with the time since it was spawned, ms. @throws when it ends before */
  readonly ready: Promise<number>
  readonly ended: Promise<{ status: number | null; signal: NodeJS.Signals | null }>
  /** What it has said on stderr so far. */
  stderr(): string
  /** Resolves when it is gone. */
  kill(): Promise<void>
  /** SIGTERM; resolves when it is gone. */
  stop(): Promise<void>
}

/** Starts the service and does not wait for it; it is killed when the test ends. */
export function spawnEnrollment(t: Test, place: EnrollmentPlace): EnrollmentProcess {
  const options = ['--data', place.data, '--port-base', String(place.portBase), '--log-level', 'error']
  const [command = '', ...before] = [...(place.under ?? []), 'env', ...PLAIN_NODE]
  const begun = performance.now()
  const child = spawn(command, [...before, MUSTER, 'enrollment', ...options, ...(place.args ?? [])], {
    stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
  })
  let said = ''
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    said = (said + text).slice(-64_000)
  })
  const ended = once(child, 'close').then(([status, signal]) => ({ status, signal }))
  const ready = Promise.race([
    once(child, 'message', { signal: AbortSignal.timeout(DEADLINE_MS) }).then(([message]) => {
      if (message.type === 'failed') throw new Error(message.message)
      return performance.now() - begun
    }),
    ended.then(({ status, signal }) => {
      throw new Error(`the service ended with ${signal ?? status} before it was ready: ${said}`)
    }),
  ])
  ready.catch(() => {}) // whoever waits for it hears of it
  const end = async (signal: NodeJS.Signals) => {
    child.kill(signal)
    await ended
  }
  t.teardown(() => end('SIGKILL'))
  return { child, ready, ended, stderr: () => said, kill: () => end('SIGKILL'), stop: () => end('SIGTERM') }
}

/** The service, ready, and clients of it. */
export interface ServingEnrollment extends EnrollmentProcess {
  readonly root: string
  readonly admin: AdminClient
  client(pair?: { certificate: string; key: string }): TestClient
}

export async function serveEnrollment(t: Test, place: EnrollmentPlace): Promise<ServingEnrollment> {
  const service = spawnEnrollment(t, place)
  await service.ready
  const root = readFileSync(layout(place.data).rootCertificate, 'utf8')
  const admin = openAdminClient(readOperatorProfile(layout(place.data).operatorProfile))
  t.teardown(() => admin.close())
  const url = `https://localhost:${ports(place.portBase).enrollment}`
  const client = (pair?: { certificate: string; key: string }) => {
    const opened = openTestClient({ url, ca: root, ...pair })
    t.teardown(() => opened.close())
    return opened
  }
  return { ...service, root, admin, client }
}
