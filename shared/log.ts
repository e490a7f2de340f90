import { type Logger, pino } from 'pino'

export type Log = Logger

/** Keys whose values never reach a log, at the top level and one level down. */
const SECRETS = ['token', 'password', 'passphrase', 'authorization', 'key', 'privateKey', 'csr', 'secret']

/** One JSON line per event on stderr: stdout belongs to data. */
export function openLog(
  service: string,
  level = 'info',
  destination: NodeJS.WritableStream = process.stderr,
): Log {
  return pino(
    {
      level,
      base: { service },
      messageKey: 'event',
      timestamp: () => `,"at":"${new Date().toISOString()}"`,
      redact: { paths: SECRETS.flatMap((key) => [key, `*.${key}`]), censor: '[redacted]' },
    },
    destination,
  )
}
