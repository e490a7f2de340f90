import type { Log } from '#shared/log'
import { liveUntil, stillLive } from './judge/admission.ts'
import type { AdmissionRecord } from './replica/replica.ts'
import type { Connection } from './sessions.ts'

export interface SessionEndDeps {
  now(): number
  readonly replica: { record(fingerprint: string): AdmissionRecord | null }
  readonly limits: { readonly rejudgeMs: number }
  readonly log: Log
}

/**
 * Ends the session when its certificate's time is over: at the end of `notAfter`, or of the overlap with its
 * successor. It is judged again at least every {@link SessionEndDeps.limits.rejudgeMs}, which also sees an overlap
 * that began since, and keeps the delay below the 24.8 days at which `setTimeout` overflows and fires at once.
 */
export function endWithRecord(deps: SessionEndDeps, connection: Connection, record: AdmissionRecord): void {
  let timer: NodeJS.Timeout
  let last = liveUntil(record) // and not the record, which would stay in memory for as long as the connection does
  const arm = (until: number) => {
    last = until
    timer = setTimeout(judge, Math.max(1, Math.min(until - deps.now(), deps.limits.rejudgeMs)))
  }
  const judge = () => {
    try {
      const current = deps.replica.record(connection.fingerprint)
      const code = stillLive(current, deps.now())
      if (code === null && current !== null) return arm(liveUntil(current))
      connection.refused ??= code
      connection.socket.destroy()
    } catch (error) {
      // The replica cannot be read: sessions stay, only new ones are refused.
      deps.log.error({ err: error }, 'cannot judge a session again')
      arm(last)
    }
  }
  connection.socket.on('close', () => clearTimeout(timer))
  arm(last)
}
