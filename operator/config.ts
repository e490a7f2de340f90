/** Of the CA: no other process of the plane gets them, not even in the environment that it starts with. */
const CA_SECRETS = [
  'MUSTER_CA_PASSPHRASE',
  'MUSTER_CA_PASSPHRASE_FILE',
  'MUSTER_PKCS11_PIN',
  'MUSTER_PKCS11_PIN_FILE',
  'CREDENTIALS_DIRECTORY',
]

/** What a child process gets of this one's environment: all of it for enrollment, nothing of the CA's for others. */
export function environmentFor(child: string): Readonly<Record<string, string | undefined>> {
  const kept = Object.entries(process.env)
  return Object.fromEntries(
    child === 'enrollment' ? kept : kept.filter(([name]) => !CA_SECRETS.includes(name)),
  )
}
